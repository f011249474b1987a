# Where things are; sourced by the other scripts, with the top of the tree as working directory.
#
# The cache holds what is the same for every checkout: virtual environments and the proxy, each under a name that says
# what is in it, so that an old one is never mistaken for a new one. It lies in ${XDG_CACHE_HOME:-~/.cache}/glidepath, except
# for a root whose home is closed to other accounts: users' servers run under accounts of their own and must be able to
# start Jupyter from there, so /var/cache/glidepath is used then.
# shellcheck shell=bash

top=$(pwd)

as_other() { # COMMAND...: as an account that has no rights at all
    setpriv --reuid=65534 --regid=65534 --clear-groups -- /bin/sh -c 'exec "$@"' sh "$@"  # setpriv itself still may all
}

is_root() { [ "$(id -u)" = 0 ]; }

choose_cache() {
    local dir=${XDG_CACHE_HOME:-$HOME/.cache}/glidepath
    mkdir -p "$dir"
    if is_root && ! as_other test -x "$dir" 2>/dev/null; then
        dir=/var/cache/glidepath
        mkdir -p "$dir"
        chmod 0755 "$dir"
    fi
    echo "$dir"
}

python_fits() { # PYTHON: new enough, able to make virtual environments, and reachable by users' accounts
    local real
    real=$("$1" -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 10); print(sys.executable)' 2>/dev/null) || return 1
    is_root || return 0
    as_other "$(readlink -f "$real")" -c '' 2>/dev/null
}

choose_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 /usr/bin/python3 python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null && python_fits "$candidate"; then
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return 0
        fi
    done
    return 1
}

digest() { # a short name for what comes in
    sha256sum | cut -c1-12
}

cache=${GLIDEPATH_CACHE:-$(choose_cache)}
machine=$(uname -m)
musl_target=$machine-unknown-linux-musl
