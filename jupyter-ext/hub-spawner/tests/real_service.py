"""The service's own program with one site on this machine, for tests that start servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

TARGET = Path(__file__).resolve().parents[3] / "target" / "debug"
PROGRAM = os.environ.get("GLIDEPATH_SPAWNER_BIN") or str(TARGET / "glidepath-spawner")
#: A small server to start: `python SERVER`.
SERVER = Path(__file__).with_name("mock_server.py")
#: For one act of the service that a test waits for.
PATIENCE_S = 30.0


class RealService:
    """One service in a folder of its own; :meth:`close` ends its servers, the service, and removes the folder."""

    def __init__(self, api_url: str, base_url: str = "/", path: str = "") -> None:
        assert os.access(PROGRAM, os.X_OK), f"{PROGRAM} is not there: run the tests by their script"
        self.folder = Path(tempfile.mkdtemp(prefix="glidepath-test-", dir="/var/tmp"))
        self.folder.chmod(0o711)  # servers' accounts must be able to pass it
        self.secret_file = self.folder / "hub.secret"
        self.secret_file.touch(0o600)
        self.secret_file.write_text("the-hubs-secret-of-the-tests")
        config = self.folder / "config.json"
        config.write_text(json.dumps(self._config(api_url, base_url, path)))
        self._log = self.folder / "service.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([PROGRAM, "--config", str(config)], stdout=log, stderr=log)
        try:
            self.url = self._when_up()
        except BaseException:
            self._end()
            raise

    def _config(self, api_url: str, base_url: str, path: str) -> dict[str, Any]:
        process: dict[str, Any] = {"work_root": str(self.folder / "jobs"), "allow_shared_account": True}
        if os.geteuid() == 0:
            # Several of these may run on one machine: accounts that are like to be nobody else's.
            first = 1_000_000 + os.getpid() % 10_000 * 1_000
            process["accounts"] = {"mode": "range", "first": first, "count": 1_000}
        if path:
            process["path"] = path
        site = {"name": "here", "title": "This machine", "backend": "process"}
        # The Hub's mock server listens on a port, as the URL in its environment says.
        site |= {"listen_on": "loopback_tcp", "process": process}
        hub = {"name": "hub", "secret_file": str(self.secret_file), "api_url": api_url, "base_url": base_url}
        defaults = {"cores": 1, "memory_mb": 512}
        return {"state_dir": str(self.folder / "state"), "hub": [hub], "site": [site], "defaults": defaults}

    def _when_up(self) -> str:
        attach = self.folder / "state" / "service.json"
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if attach.exists():
                return str(json.loads(attach.read_text())["api"])
            time.sleep(0.05)
        raise AssertionError(f"the service did not come up:\n{self.log()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-8000:]

    def end_servers(self) -> None:
        """Ends whatever server still lives."""
        deadline = time.monotonic() + PATIENCE_S
        while alive := [one["key"] for one in self._ask("GET", "/servers")["servers"] if one["state"] != "ended"]:
            assert time.monotonic() < deadline, f"{alive} do not end:\n{self.log()}"
            for key in alive:
                self._ask("DELETE", f"/servers/{key}?now=true&wait_s=5")

    def _ask(self, method: str, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.secret_file.read_text()}"}
        reply = requests.request(method, f"{self.url}/v1/hubs/hub{path}", headers=headers, timeout=PATIENCE_S)
        reply.raise_for_status()
        return reply.json()

    def close(self) -> None:
        try:
            self.end_servers()
        finally:
            self._end()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder)
