"""Runs the demo: a real JupyterHub on loopback with two sites, and cleans up behind itself.

In: PORT and DEMO_DIR, and from .paths where things are. Out: one line when it is ready. Stays in the foreground;
Ctrl-C or SIGTERM ends Hub, service, servers and the far site's network namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from far import Far

TOP = Path(__file__).resolve().parents[1]
HUB_CONFIG = TOP / "demo/jupyterhub_config.py"
READY_WITHIN_S = 90


class CannotRun(Exception):
    """One sentence that says why, and what to do."""


class Ended(Exception):
    """Somebody asked the demo to end."""


def main() -> int:
    demo = Demo(os.environ.get("PORT", "8000"), Path(os.environ.get("DEMO_DIR", TOP / ".demo")).absolute())
    _at_signals(_end)
    try:
        demo.run()
    except CannotRun as problem:
        print(f"The demo cannot run: {problem}", file=sys.stderr)
        return 1
    except Ended:
        print("\nEnding the demo ...", flush=True)
    finally:
        _at_signals(signal.SIG_IGN)
        demo.close()
    return 0


class Demo:
    """One demo: its folder, its Hub, its far site."""

    def __init__(self, port: str, folder: Path) -> None:
        self._asked_port = port
        self.port = 0
        self.folder = folder
        self.begun = False
        self.hub: subprocess.Popen[bytes] | None = None
        self.far: Far | None = None

    def run(self) -> None:
        self._check()
        self._end_leftovers()
        settings = self._settings()
        told = self.folder / "demo.json"
        told.write_text(json.dumps(settings, indent=1))
        environ = os.environ | {
            "GLIDEPATH_DEMO": str(told),
            "PATH": f"{Path(settings['proxy']).parent}:{os.environ['PATH']}",
        }
        log = self.folder / "hub.log"
        self.begun = True
        with log.open("wb") as output:
            self.hub = subprocess.Popen(
                [str(TOP / ".venv-hub6/bin/python"), "-m", "jupyterhub", "-f", str(HUB_CONFIG)],
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours: we end it in order
            )
        self._wait_ready(log)
        self._greet()
        status = self.hub.wait()
        raise CannotRun(f"the Hub ended with status {status}; its last lines in {log}:\n{_tail(log)}")

    def close(self) -> None:
        """Ends everything that this demo started."""
        if self.hub is not None and self.hub.poll() is None:
            self.hub.terminate()  # the Hub ends its servers, its proxy and the service
            try:
                self.hub.wait(45)
            except subprocess.TimeoutExpired:
                self.hub.kill()
                self.hub.wait()
        if self.begun:
            self._end_leftovers()
        if self.far is not None:
            self.far.remove()

    def _check(self) -> None:
        if not (self._asked_port.isascii() and self._asked_port.isdecimal() and 0 < int(self._asked_port) < 65536):
            raise CannotRun(f"PORT is {self._asked_port!r} and must be a number from 1 to 65535: make demo PORT=8001")
        self.port = int(self._asked_port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise CannotRun(
                    f"port {self.port}: {error.strerror}; choose another one: make demo PORT=8001"
                ) from None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711)
        except OSError as error:
            raise CannotRun(f"{self.folder}: {error.strerror}; choose another folder: make demo DEMO_DIR=...") from None
        if os.geteuid() == 0 and not _fit_for_root(self.folder):
            raise CannotRun(
                f"{self.folder} is not for a service that runs as root: other accounts cannot enter it, or "
                "others than root own a folder above it; choose another one: "
                "make demo DEMO_DIR=/var/tmp/glidepath-demo"
            )

    def _settings(self) -> dict[str, Any]:
        """What the Hub's config needs to know of this machine."""
        ports = _free_ports(2)
        settings: dict[str, Any] = {
            "folder": str(self.folder),
            "port": self.port,
            "hub_port": ports[0],
            "proxy_api_port": ports[1],
            "proxy": os.environ["GLIDEPATH_PROXY"],
            "server": f"{os.environ['GLIDEPATH_HUB6']}/bin/jupyterhub-singleuser",
            "agent": str(TOP / ".venv-hub6/bin/glidepath-agent"),
        }
        if os.geteuid() == 0:
            self.far = Far(f"glidepath-demo-{self.port}")
            self.far.build()
            return settings | {
                "accounts": {},
                "far": {"network_namespace": self.far.path},
                "link": f"{self.far.home}:0",
            }
        return settings | {
            "accounts": {"accounts": {"mode": "shared"}, "allow_shared_account": True},
            "far": {},
            "link": "127.0.0.1:0",
        }

    def _wait_ready(self, log: Path) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.hub is not None and self.hub.poll() is not None:
                raise CannotRun(f"the Hub ended with status {self.hub.returncode}; {log} ends with:\n{_tail(log)}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                answer = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/hub/login", timeout=2)
                if answer.status == 200 and (self.folder / "glidepath" / "service.json").exists():
                    return
            time.sleep(0.2)
        raise CannotRun(f"it was not ready after {READY_WITHIN_S} s; {log} ends with:\n{_tail(log)}")

    def _greet(self) -> None:
        isolated = os.geteuid() == 0
        print(f"Glidepath is ready: http://127.0.0.1:{self.port}")
        print("  Log in as ada or bob, or as the administrator op; the password is demo.")
        print('  "Far away" is a site behind a link that its agent dials: ', end="")
        print("a network namespace that lets nothing in." if isolated else "not root, so on this machine's network.")
        if not isolated:
            print("  Not root, so all servers share your account: users are not isolated from each other.")
        print("  Try: start a server far away, run a cell, then in another shell")
        service = json.loads((self.folder / "glidepath/service.json").read_text())
        print(f"    kill -9 {service['pid']}     # the service; the Hub starts it again, and the kernel lives on")
        if self.far is not None:
            print(f"    ip -n {self.far.name} link set {self.far.inside} down     # pull the cable; up plugs it in")
        print(f"  Logs: {self.folder}/hub.log and {self.folder}/glidepath/service.log. Ctrl-C ends it all.", flush=True)

    def _end_leftovers(self) -> None:
        """Ends what a demo in this folder left behind: first the Hub, which would start its service again, then
        service, proxy and page, then jobs."""
        for is_left in (_is_hub_of, _is_ours_of, _is_job_of):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid() and is_left(entry, self.folder):
                    _end_process(int(entry.name))


def _is_hub_of(process: Path, folder: Path) -> bool:
    return _is_ours_of(process, folder) and str(HUB_CONFIG).encode() in _read(process / "cmdline")


def _is_ours_of(process: Path, folder: Path) -> bool:
    """What the Hub of this demo started, and it itself: they hold in their environment where its settings are."""
    return f"\0GLIDEPATH_DEMO={folder}/demo.json\0".encode() in b"\0" + _read(process / "environ")


def _is_job_of(process: Path, folder: Path) -> bool:
    """A process of a job of this demo: it carries the label of an attempt, and our folder."""
    environ = _read(process / "environ")
    return b"GLIDEPATH_ATTEMPT=" in environ and f"{folder}/".encode() in environ + _read(process / "cmdline")


def _read(file: Path) -> bytes:
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return b""


def _end_process(pid: int) -> None:
    for signum, within_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, signum)
        except OSError:
            return
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                    return
            except OSError:
                return
            time.sleep(0.05)


def _fit_for_root(folder: Path) -> bool:
    """Whether an account without any rights gets there, and root alone says what lies on the way."""
    above = [parent.lstat() for parent in (folder, *folder.parents)]
    return all(found.st_mode & 0o001 and found.st_uid == 0 and stat.S_ISDIR(found.st_mode) for found in above)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _at_signals(handler: Any) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, handler)


def _end(signum: int, _frame: object) -> None:
    _at_signals(signal.SIG_IGN)  # once is enough; what follows has deadlines of its own
    raise Ended(signal.Signals(signum).name)


if __name__ == "__main__":
    sys.exit(main())
