"""How each program that is not ours gets here: from package managers, in one version, once.

What is built lies in the cache of the other tools, under a name that says what it is. A program that cannot be had on
this machine is `NotHere`, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

RATHOLE, BORE, PENGUIN = "0.5.0", "0.6.0", "0.8.4"
CHISEL, TRAEFIK = "v1.10.1", "v3.6.12"
#: From cold, on two cores, with a reserve.
BUILD_WITHIN_S = 1800


class NotHere(Exception):
    """A program that this machine cannot have, and why."""


def cache() -> Path:
    """Where scripts/setup keeps its tools, too."""
    if told := os.environ.get("GLIDEPATH_CACHE"):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glidepath"


def debian(program: str, package: str) -> Path:
    """A program of the distribution; installed when it is missing, without starting what it brings."""
    path = "/usr/local/sbin:/usr/sbin:/sbin:" + os.environ["PATH"]
    if found := shutil.which(program, path=path):
        return Path(found)
    if not shutil.which("apt-get"):
        raise NotHere(f"{program} is not installed, and there is no apt-get to install {package}")
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package]
    with nothing_starts():
        try:
            run(install, package)
        except NotHere:
            run(["apt-get", "update", "--quiet"], package)
            run(install, package)
    if found := shutil.which(program, path=path):
        return Path(found)
    raise NotHere(f"{package} brought no {program}")


@contextlib.contextmanager
def nothing_starts() -> Iterator[None]:
    """Debian's way to say that an installation starts no service."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def crate(name: str, version: str, program: str) -> Path:
    """A program of crates.io, with the versions of its own lock file."""
    folder = cache() / f"bench-{name}-{version}"
    target = folder / "target"
    command = ["cargo", "install", "--quiet", "--locked", "--version", version, "--root", str(folder), name]
    return built(folder / "bin" / program, command, cwd=Path("/"), scratch=target, CARGO_TARGET_DIR=str(target))


def chisel() -> Path:
    """A Go program, by a module that needs it."""
    folder = cache() / f"bench-chisel-{CHISEL}"
    folder.mkdir(parents=True, exist_ok=True)
    module = "github.com/jpillora/chisel"
    (folder / "go.mod").write_text(f"module bench/chisel\n\ngo 1.21\n\nrequire {module} {CHISEL}\n")
    # Without a package that imports it `go` would take the requirement for unused.
    (folder / "needs.go").write_text(f'//go:build tools\n\npackage needs\n\nimport _ "{module}"\n')
    return built(folder / "bin" / "chisel", ["go", "build", "-mod=mod", "-o", "bin/chisel", module], cwd=folder)


def traefik() -> Path:
    """A Go program whose own go.mod replaces modules: it is built where a copy of its source lies."""
    folder = cache() / f"bench-traefik-{TRAEFIK}"
    program = folder / "bin" / "traefik"
    if program.exists():
        return program
    need("go")
    source = folder / "source"
    folder.mkdir(parents=True, exist_ok=True)
    told = run(["go", "mod", "download", "-json", f"github.com/traefik/traefik/v3@{TRAEFIK}"], "traefik", cwd=folder)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(json.loads(told)["Dir"], source)
    for path in [source, *source.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    return built(
        program, ["go", "build", "-ldflags", "-s -w", "-o", str(program), "./cmd/traefik"], cwd=source, scratch=source
    )


def built(program: Path, command: Sequence[str], cwd: Path, scratch: Path | None = None, **environ: str) -> Path:
    """The program, after this command when it is not there yet."""
    if not program.exists():
        need(command[0])
        program.parent.mkdir(parents=True, exist_ok=True)
        print(f"installing {program.name} into {program.parent.parent}: takes minutes, once", flush=True)
        run(command, program.name, cwd=cwd, **environ)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    if not program.exists():
        raise NotHere(f"its build left no {program.name}")
    return program


def need(command: str) -> None:
    if not shutil.which(command):
        raise NotHere(f"there is no {command} to build it with")


def run(command: Sequence[str], what: str, cwd: Path | None = None, **environ: str) -> str:
    """Runs an installer; its last lines are the reason when it fails."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"} | environ
    try:
        done = subprocess.run(
            command, cwd=cwd, env=os.environ | quiet, capture_output=True, text=True, timeout=BUILD_WITHIN_S
        )
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"{what} was not built in {BUILD_WITHIN_S} s") from error
    if done.returncode != 0:
        last = " / ".join(done.stderr.strip().splitlines()[-2:])
        raise NotHere(f"{command[0]} {command[1]} failed: {last}")
    return done.stdout
