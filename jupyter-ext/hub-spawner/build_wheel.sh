#!/usr/bin/env bash
# Builds the wheel with the service and the agent in it.
#
#   build_wheel.sh [PROFILE] [OUT]     PROFILE: release (default) or dev; OUT: folder, default dist/ here
#
# MATURIN names maturin (default: the one on the path). The agent is static, so that it runs at any site.
set -euo pipefail
cd "$(dirname "$0")"
profile=${1:-release} out=${2:-dist}
out=$(mkdir -p "$out" && cd "$out" && pwd)
target=$(uname -m)-unknown-linux-musl
cargo build --locked --package glidepath-agent --target "$target" --profile "$profile"
built=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
folder=$profile
[ "$profile" = dev ] && folder=debug
mkdir -p wheel-data/scripts
install -m 755 "$built/$target/$folder/glidepath-agent" wheel-data/scripts/glidepath-agent
exec "${MATURIN:-maturin}" build --locked --profile "$profile" --out "$out"
