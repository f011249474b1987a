"""Made `first.sql` and `first.key`: the store of the first service that could run servers, as a kill left it.

    make_first.py SERVICE AGENT STUB

SERVICE and AGENT are the programs of commit 91e3921 (`cargo build -p glidepath-spawner-svc -p glidepath-agent`),
STUB is `tests/e2e/servers/stub.py`; to be run by root. One server is ready, one waits in a queue, one was stopped, one
ended by itself; then the service is killed. The key is a test's: what it opens are the tokens below.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

SECRET = "a-secret-of-twenty-characters"
HERE = Path(__file__).parent


def main(service: str, agent: str, stub: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gp-first-"))
    folder.chmod(0o711)
    copied, agent = Path(shutil.copy(stub, folder / "stub.py")), shutil.copy(agent, folder / "glidepath-agent")
    copied.chmod(0o644)
    config = folder / "config.json"
    hub = {
        "name": "main",
        "secret_sha256": [hashlib.sha256(SECRET.encode()).hexdigest()],
        "api_url": "http://127.0.0.1:9",
    }
    config.write_text(
        json.dumps(
            {
                "state_dir": str(folder / "state"),
                "instance": "first",
                "agent": {"x86_64": str(agent)},
                "hub": [hub],
                "site": [
                    site("here", folder),
                    site("queue", folder, queue_delay_s=3600),
                ],
            }
        )
    )
    child = subprocess.Popen([service, "--config", str(config), "serve"])
    try:
        live(folder, copied)
    finally:
        child.kill()
        child.wait()
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(folder).encode() in command.read_bytes():
                    os.kill(int(command.parent.name), signal.SIGKILL)
            except OSError:
                continue
    with sqlite3.connect(folder / "state" / "glidepath.db") as books:
        (HERE / "first.sql").write_text("\n".join(books.iterdump()).replace(str(folder), "/srv/glidepath") + "\n")
    shutil.copy(folder / "state" / "keys" / "seal.key", HERE / "first.key")
    shutil.rmtree(folder)


def site(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    process = {"work_root": str(folder / f"work-{name}"), "accounts": {"mode": "range", "first": 185000, "count": 100}}
    title = {"here": "This machine", "queue": "The busy site"}[name]
    return {"name": name, "title": title, "backend": "process", "reach": "direct", "process": process | more}


def live(folder: Path, stub: Path) -> None:
    until(lambda: (folder / "state" / "service.json").exists())
    api = json.loads((folder / "state" / "service.json").read_text())["api"]

    def ask(method: str, user: str, body: Any = None) -> dict[str, Any]:
        request = urllib.request.Request(f"{api}/v1/hubs/main/servers/main.{user}.", method=method)
        request.add_header("Authorization", f"Bearer {SECRET}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, json.dumps(body).encode() if body else None) as reply:
            found: dict[str, Any] = json.loads(reply.read() or b"{}")
            return found

    for user, where, mode in [
        ("ada", "here", "well"),
        ("bob", "here", "well"),
        ("eve", "here", "exits"),
        ("max", "queue", "well"),
    ]:
        prefix = f"/user/{user}/"
        body = {
            "spawn_id": f"spawn-of-{user}",
            "options": {"site": where, "memory_mb": 512},
            "argv": ["/usr/bin/python3", str(stub), mode, "--ServerApp.sock={socket}"],
            "env": {
                "JUPYTERHUB_API_TOKEN": f"t0ken-of-{user}",
                "JUPYTERHUB_SERVICE_PREFIX": prefix,
                "JUPYTERHUB_USER": user,
            },
            "prefix": prefix,
        }
        ask("PUT", user, body)
    for user, state in [("ada", "ready"), ("bob", "ready"), ("eve", "ended"), ("max", "queued")]:
        until(lambda user=user, state=state: ask("GET", user)["state"] == state)
    ask("DELETE", "bob")
    until(lambda: ask("GET", "bob")["state"] == "ended")
    time.sleep(2)  # until what is left of the ended ones is removed


def until(look: Any) -> None:
    deadline = time.monotonic() + 120
    while not look():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


main(*sys.argv[1:])
