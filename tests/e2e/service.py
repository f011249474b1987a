"""glidepath-spawner, as a test starts, kills and asks it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import requests

import places
from far import Far
from waiting import NotInTime, alive, eventually

#: Short enough that a test can wait for each of them.
DEADLINES = {"queued_s": 3600, "dialling_s": 12, "starting_s": 40, "doubt_s": 30, "grace_s": 5}


def site(name: str, folder: Path, far: Far | None = None, **more: Any) -> dict[str, Any]:
    """One site of the process backend; `far` puts it behind that cable. `process_x=` goes to its own table."""
    process: dict[str, Any] = {"work_root": str(folder / f"jobs-{name}")}
    if os.geteuid() != 0:
        process |= {"accounts": {"mode": "shared"}, "allow_shared_account": True}
    if far is not None:
        process["network_namespace"] = far.path
    process |= {key.removeprefix("process_"): value for key, value in more.items() if key.startswith("process_")}
    rest = {key: value for key, value in more.items() if not key.startswith("process_")}
    reach = "tunnel" if far is not None else "direct"
    titles = {"here": "This machine", "far": "The far site", "queue": "The busy site", "late": "The next building"}
    base = {"name": name, "title": titles.get(name, name.title()), "backend": "process", "reach": reach}
    return base | rest | {"process": process}


def sites_config(sites: list[dict[str, Any]], far: Far | None, **more: Any) -> dict[str, Any]:
    """What every service of these tests is told, beside its Hubs."""
    config: dict[str, Any] = {
        "site": sites,
        "agent": {"x86_64": places.agent(), "aarch64": places.agent()},
        "deadlines": DEADLINES,
        "presets": [
            {"name": "small", "title": "Small", "description": "To look around", "cores": 1, "memory_mb": 2048},
            {"name": "large", "title": "Large", "description": "For real work", "cores": 2, "memory_mb": 6144},
        ],
        "log": {"format": "text", "level": "info,glidepath=debug,glidepath_spawner=debug,glidepath_tunnel=debug"},
    }
    if far is not None:
        config["listen"] = {"link": f"{far.home}:0"}
    return config | more


def server_key(hub: str, user: str, server: str = "") -> str:
    """The written key: letters, digits and `-` stand for themselves, other bytes are `_` and two hex digits."""

    def escaped(name: str) -> str:
        return "".join(
            chr(byte) if byte < 128 and (chr(byte).isalnum() or byte == ord("-")) else f"_{byte:02x}"
            for byte in name.encode()
        )

    return ".".join(escaped(name) for name in (hub, user, server))


class Attached:
    """A running service, found by the file in its state folder: who speaks to it holds the Hub's secret."""

    def __init__(self, state_dir: Path, hub: str, secret_file: Path) -> None:
        self.state_dir = state_dir
        self.hub = hub
        self.secret_file = secret_file
        self._over: dict[tuple[str, str], str] = {}

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state_dir / "service.json").read_text())
        return found

    @property
    def pid(self) -> int:
        return int(self.facts["pid"])

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        secret = self.secret_file.read_text().strip()
        headers = {"Authorization": f"Bearer {secret}"}
        url = self.facts["api"] + f"/v1/hubs/{self.hub}" + path
        return requests.request(method, url, headers=headers, timeout=30, **more)

    def view(self, user: str, server: str = "") -> dict[str, Any]:
        key = server_key(self.hub, user, server)
        reply = self.ask("GET", f"/servers/{key}")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def state(self, user: str, server: str = "") -> str:
        return str(self.view(user, server)["state"])

    def start_follows(self, user: str, server: str) -> None:
        """A new start is about to be asked for: a run that has ended by now is not the one to wait for."""
        try:
            view = self.view(user, server)
        except (requests.RequestException, OSError, ValueError, AssertionError):
            return
        if view["state"] == "ended":
            self._over[user, server] = view["run"]

    def new_end(self, user: str, server: str) -> dict[str, Any] | None:
        """How the run ended that was asked for last, if it did."""
        try:
            view = self.view(user, server)
        except (requests.RequestException, OSError, ValueError, AssertionError):
            return None
        return None if view["run"] == self._over.get((user, server)) else view.get("end")

    def wait_state(self, user: str, *states: str, server: str = "", within_s: float = 40) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            try:
                view = self.view(user, server)
            except requests.RequestException:
                return None
            if view["run"] == self._over.get((user, server)):
                return None
            if view["state"] not in states and "ended" not in states and view["state"] == "ended":
                raise AssertionError(f"{user} ended while {states} was awaited: {view['end']}")
            return view if view["state"] in states else None

        return eventually(f"{user}/{server} in {states}", look, within_s)

    def kill(self) -> int:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        eventually("the service is dead", lambda: not alive(pid), 10)
        return pid

    def wait_up(self, other_than: int = 0, within_s: float = 20) -> None:
        def look() -> bool:
            facts = self.facts
            if facts["pid"] == other_than or not alive(facts["pid"]):
                return False
            try:
                return requests.get(facts["api"] + "/v1/hubs", timeout=2).status_code < 500
            except requests.RequestException:
                return False

        eventually("the service is up", look, within_s)

    @property
    def log(self) -> str:
        return (self.state_dir / "service.log").read_text(errors="replace")


class Service(Attached):
    """A service that stands apart from its Hubs; the test is its operator."""

    def __init__(self, folder: Path, config: dict[str, Any], hubs: list[dict[str, Any]]) -> None:
        state_dir = folder / "service"
        state_dir.mkdir(mode=0o700, parents=True)
        for hub in hubs:
            file = state_dir / f"hub-{hub['name']}.secret"
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(32))
            hub["secret_file"] = str(file)
        super().__init__(state_dir, hubs[0]["name"], Path(hubs[0]["secret_file"]))
        self.config_file = folder / "spawner.json"
        self.config_file.write_text(json.dumps(config | {"state_dir": str(state_dir), "hub": hubs}, indent=1))
        self.child: subprocess.Popen[bytes] | None = None

    def of_hub(self, name: str) -> Attached:
        return Attached(self.state_dir, name, self.state_dir / f"hub-{name}.secret")

    def start(self, program: str = "", **environ: str) -> None:
        """Starts it and waits until it is up. Another program than the usual one has its faults built in."""
        with (self.state_dir / "service.log").open("ab") as log:
            self.child = subprocess.Popen(
                [program or places.service(), "--config", str(self.config_file), "serve"],
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        child = self.child
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise NotInTime(f"the service ended with {child.returncode}: {self.log[-2000:]}")
            try:
                if self.facts["pid"] == child.pid:
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.05)
        raise NotInTime(f"the service did not come up: {self.log[-2000:]}")

    def kill(self) -> int:
        assert self.child is not None
        self.child.kill()
        self.child.wait(10)
        return self.child.pid

    def stop(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait(10)
