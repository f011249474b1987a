"""What an operator reads when something is set up wrong: one clear sentence each, an exit code, nothing half-made."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import places
from service import site
from waiting import eventually


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A right config, but for the changes."""
    secret = folder / "hub.secret"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_urlsafe(32))
    config: dict[str, Any] = {
        "state_dir": str(folder / "state"),
        "agent": {"x86_64": places.agent(), "aarch64": places.agent()},
        "hub": [{"name": "hub", "secret_file": str(secret), "api_url": "http://127.0.0.1:8081/hub/api"}],
        "site": [site("here", folder)],
    }
    return config | changes


def run(folder: Path, config: dict[str, Any], command: str) -> subprocess.CompletedProcess[str]:
    file = folder / "spawner.json"
    file.write_text(json.dumps(config))
    return subprocess.run(
        [places.service(), "--config", str(file), command],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one sentence that was told, with that exit code; what is told more than that fails."""
    assert done.returncode == status, told(done)
    assert done.stdout == "", done.stdout
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def listing(folder: Path) -> list[str]:
    """All that lies in a folder, but for our own config."""
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.name != "spawner.json")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 256 KiB large."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], check=True, timeout=10)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=10)


def test_a_right_config_is_told_to_be_right(tmp_path: Path) -> None:
    done = run(tmp_path, config_of(tmp_path), "check")
    assert done.returncode == 0, told(done)


def test_check_tells_every_problem_at_once_with_key_and_remedy(tmp_path: Path) -> None:
    config = config_of(tmp_path, listen={"api": "localhost"}, log={"format": "yaml"}, sites=[])
    config["site"][0]["reach"] = "sideways"
    config["site"][0]["name"] = "Far Site"
    before = listing(tmp_path)
    done = run(tmp_path, config, "check")
    assert done.returncode == 2, told(done)
    for key in ("listen.api", "log.format", "sites", "reach", "name"):
        assert key in told(done), f"{key} is missing in: {told(done)}"
    assert listing(tmp_path) == before


def test_a_port_in_use_is_told_with_its_key(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, config_of(tmp_path, listen={"api": f"127.0.0.1:{port}"}), "serve")
    said = sentence(done, 1)
    assert "listen.api" in said and str(port) in said, said
    assert listing(tmp_path / "state") == ["lock"]


def test_an_unwritable_state_folder_is_told_with_its_path(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=10)
    done = run(tmp_path, config_of(tmp_path, state_dir=str(small_disk / "state")), "serve")
    assert str(small_disk / "state") in sentence(done, 1)
    assert listing(small_disk) == []


def test_a_full_disk_is_told_and_leaves_nothing_half_made(tmp_path: Path, small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb") as ballast:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
        ballast.write(b"x" * (free - 8192))
    done = run(tmp_path, config_of(tmp_path, state_dir=str(small_disk / "state")), "serve")
    said = sentence(done, 1)
    assert "full" in said and str(small_disk / "state") in said, said
    left = listing(small_disk / "state")
    assert set(left) <= {"lock", "ports.json"}, left
    if "ports.json" in left:
        json.loads((small_disk / "state" / "ports.json").read_text())  # whole, or it would not be there
    # With room again, the same folder serves: nothing in it was left half-made.
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True, timeout=10)
    file = tmp_path / "spawner.json"
    child = subprocess.Popen(
        [places.service(), "--config", str(file), "serve"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def up() -> bool:
            assert child.poll() is None, child.stdout and child.stdout.read()
            return (small_disk / "state" / "service.json").exists()

        eventually("the service serves from that folder", up, 20)
    finally:
        child.terminate()
        child.wait(20)


def test_a_second_service_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "spawner.json").write_text(json.dumps(config))
    first = subprocess.Popen(
        [places.service(), "--config", str(tmp_path / "spawner.json"), "serve"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually("the first is up", (tmp_path / "state" / "service.json").exists, 20)
        before = listing(tmp_path / "state")
        assert str(tmp_path / "state") in sentence(run(tmp_path, config, "serve"), 1)
        assert listing(tmp_path / "state") == before
        assert first.poll() is None
    finally:
        first.terminate()
        assert first.wait(20) == 0


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "hub.secret").chmod(0o644)
    said = sentence(run(tmp_path, config, "check"), 2)
    assert "secret_file" in said and "600" in said, said
