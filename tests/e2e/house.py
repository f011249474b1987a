"""A real JupyterHub with its proxy, and what its operator does to it.

A `House` owns a folder, free ports, the Hub's process and everything that comes of it. Its service is embedded unless
one is given. Leaving the house ends every process that it caused, and says so when something was left behind.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import requests

import places
from far import Far
from people import Person
from service import Attached, Service, site, sites_config
from waiting import NotInTime, alive, eventually, free_port, processes_of

PASSWORD = "demo"


class House:
    """See the module."""

    def __init__(
        self,
        folder: Path,
        *,
        hub: str = "6",
        hub_name: str = "hub",
        base_url: str = "/",
        subdomain: str = "",
        far: Far | None = None,
        sites: list[dict[str, Any]] | None = None,
        service: Service | None = None,
        http_timeout: int = 30,
        cleanup_servers: bool = False,
        more_config: dict[str, Any] | None = None,
        hub_settings: dict[str, dict[str, Any]] | None = None,
        environment: dict[str, str] | None = None,
        bare: bool = False,
    ) -> None:
        """`hub_settings`: more of the Hub's own config, by class. `environment`: more of it for each server.
        `bare`: neither the Hub's config nor its environment says anything of Glidepath but `configure(c)`."""
        self.bare = bare
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        self.hub_version = hub
        self.base_url = base_url
        self.far = far
        self.port, self.hub_port, proxy_api_port = free_port(), free_port(), free_port()
        self.host = f"{subdomain}:{self.port}" if subdomain else f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}{base_url}"
        self.token = secrets.token_hex(16)
        self.server_secret = secrets.token_hex(16)
        state_dir = folder / "glidepath"
        self.service: Attached = (
            service.of_hub(hub_name)
            if service is not None
            else Attached(state_dir, hub_name, state_dir / f"hub-{hub_name}.secret")
        )
        if sites is None:
            sites = [site("here", folder)] + ([site("far", folder, far)] if far is not None else [])
        self.settings: dict[str, Any] = {
            "folder": str(folder),
            "bind_url": f"http://127.0.0.1:{self.port}{base_url}",
            "subdomain_host": f"http://{self.host}" if subdomain else "",
            "hub_port": self.hub_port,
            "proxy_api_port": proxy_api_port,
            "proxy_secret": secrets.token_hex(16),
            "proxy": places.proxy(),
            "password": PASSWORD,
            "token": self.token,
            "hub_name": hub_name,
            "service_url": "" if service is None else service.facts["api"],
            "secret_file": str(self.service.secret_file),
            "state_dir": "" if bare else str(state_dir),
            "service_config": sites_config(sites, far, **(more_config or {})),
            "server_command": [places.server_command(hub)],
            "stub_python": places.stub_python(),
            "stub": str(self._copied(places.HERE / "servers" / "stub.py", 0o644)),
            "light_server": str(self._copied(Path(places.light_server()), 0o755)),
            "http_timeout": http_timeout,
            "cleanup_servers": cleanup_servers,
            "hub_settings": hub_settings or {},
            "environment": environment or {},
            "server_secret": self.server_secret,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> House:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the operator -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the Hub and waits until its API answers through the proxy."""
        settings = self.folder / "settings.json"
        settings.touch(mode=0o600)
        settings.write_text(json.dumps(self.settings, indent=1))
        left_out = ("PYTEST", "GLIDEPATH_") if self.bare else ("PYTEST",)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        environ |= {"HOUSE_SETTINGS": str(settings), "PATH": f"{Path(places.proxy()).parent}:{environ['PATH']}"}
        with (self.folder / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [places.hub_python(self.hub_version), "-m", "jupyterhub", "-f", str(places.HERE / "hub_config.py")],
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_up()

    def wait_up(self, within_s: float = 60) -> None:
        def look() -> bool:
            process = self.process
            if process is None or process.poll() is not None:
                raise NotInTime(f"the Hub has ended: {self.hub_log[-3000:]}")
            try:
                return self.api("GET", "/info").status_code == 200
            except requests.RequestException:
                return False

        eventually("the Hub answers", look, within_s)

    def kill_hub(self) -> None:
        """SIGKILL, to the Hub alone. Its proxy lives on, as it does when a machine kills a process for its memory."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop_hub(self) -> None:
        """As an operator stops it. Servers and service go on, unless `cleanup_servers` is set."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._end_proxy()

    def restart_hub(self) -> None:
        """After a kill: a proxy that was left behind goes, as a service manager would have it."""
        self._end_proxy()
        self.start()

    def api(self, method: str, path: str, body: Any = None, token: str = "") -> requests.Response:
        """The Hub's REST API, with the rights of a service for tests unless a token is given."""
        return requests.request(
            method,
            f"http://127.0.0.1:{self.port}{self.base_url}hub/api{path}",
            json=body,
            headers={"Authorization": f"token {token or self.token}", "Host": self.host},
            timeout=60,
        )

    # ---- users over the REST API --------------------------------------------------------------------------------

    def person(self, name: str) -> Person:
        """Somebody with a browser. Makes the user when there is none yet."""
        self.api("POST", f"/users/{quote(name)}")
        return Person(self, name)

    def ask_for(self, user: str, server: str = "", **options: Any) -> requests.Response:
        """Asks for a server by REST; 202 while it is on its way."""
        self.api("POST", f"/users/{quote(user)}")
        self.service.start_follows(user, server)
        where = f"/users/{quote(user)}/servers/{quote(server)}" if server else f"/users/{quote(user)}/server"
        return self.api("POST", where, options)

    def model(self, user: str, server: str = "") -> dict[str, Any] | None:
        """The server in the Hub's own books; None when it is in none."""
        reply = self.api("GET", f"/users/{quote(user)}?include_stopped_servers=1")
        found: dict[str, Any] | None = reply.json().get("servers", {}).get(server)
        return found

    def wait_ready(self, user: str, server: str = "", within_s: float = 60) -> dict[str, Any]:
        """Until the Hub says that the server is ready. Tells why when it ended instead."""

        def look() -> dict[str, Any] | None:
            model = self.model(user, server)
            if model and model["ready"]:
                return model
            if not model or not model.get("pending"):
                end = self.service.new_end(user, server)
                if end:
                    raise AssertionError(f"{user}/{server} ended: {end}")
            return None

        return eventually(f"{user}/{server} is ready in the Hub", look, within_s)

    def started(self, user: str, server: str = "", within_s: float = 60, **options: Any) -> dict[str, Any]:
        """A server that is ready, as the service sees it."""
        reply = self.ask_for(user, server, **options)
        assert reply.status_code in (201, 202), reply.text
        self.wait_ready(user, server, within_s)
        return self.service.view(user, server)

    def stop_server(self, user: str, server: str = "") -> requests.Response:
        where = f"/users/{quote(user)}/servers/{quote(server)}" if server else f"/users/{quote(user)}/server"
        return self.api("DELETE", where)

    def wait_gone(self, user: str, server: str = "", within_s: float = 40) -> None:
        """Until the Hub has no such server and no process of it is left."""

        def look() -> bool:
            model = self.model(user, server)
            return not model or (not model["ready"] and not model["pending"] and model.get("stopped", True))

        eventually(f"the Hub has no server {user}/{server}", look, within_s)

    def stopped(self, user: str, server: str = "") -> None:
        """Stops a server and waits until nothing of it is left."""
        run = self.service.view(user, server)["run"]
        reply = self.stop_server(user, server)
        assert reply.status_code in (202, 204), reply.text
        self.wait_gone(user, server)
        eventually(f"no process of {run} is left", lambda: not processes_of(run), 20)

    @property
    def hub_log(self) -> str:
        return (self.folder / "hub.log").read_text(errors="replace")

    # ---- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends Hub, proxy, service and every job of this house."""
        runs = self._runs()
        self.stop_hub()
        if isinstance(self.service, Attached):
            try:
                pid = self.service.pid
            except (OSError, ValueError):
                pid = 0
            if pid and not isinstance(self.service, Service) and not self.settings["service_url"]:
                _end(pid)
        for process in processes_of():
            if process.attempt.rpartition("-")[0] in runs:
                _end(process.pid, signal.SIGKILL)

    def _runs(self) -> set[str]:
        try:
            servers = self.service.ask("GET", "/servers").json()
        except (requests.RequestException, OSError, ValueError):
            return self._runs_by_folder()
        listed = servers.get("servers", []) if isinstance(servers, dict) else servers
        return {one["run"] for one in listed if one.get("run")} | self._runs_by_folder()

    def _runs_by_folder(self) -> set[str]:
        """Runs whose jobs have work in this folder, also when the service can say nothing any more."""
        found = set()
        for process in processes_of():
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
                inside = str(self.folder).encode() in environ
            except OSError:
                continue
            if inside or any(str(self.folder) in part for part in process.argv):
                found.add(process.attempt.rpartition("-")[0])
        return found

    def _end_proxy(self) -> None:
        try:
            pid = int((self.folder / "proxy.pid").read_text())
        except (OSError, ValueError):
            return
        if alive(pid) and b"configurable-http-proxy" in Path(f"/proc/{pid}/cmdline").read_bytes():
            _end(pid)

    def _copied(self, file: Path, mode: int) -> Path:
        """Where every account can read it."""
        copy = self.folder / file.name
        shutil.copy(file, copy)
        copy.chmod(mode)
        return copy


def _end(pid: int, signum: int = signal.SIGTERM) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + 15
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
