"""The demo: one line when it is ready, two sites, what to try, and nothing left at its end, whenever that comes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests

import places
from people import text_of
from waiting import NotInTime, eventually, free_port, processes_of

#: Longer than the demo itself waits for its Hub, so that its own sentence is what a failure shows.
READY_WITHIN_S = 110


class Demo:
    """`demo/run.py` as `make demo` runs it, and people who log in to it."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o711)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.folder = folder / "demo"
        self.log = folder / "demo.log"
        self.before = {process.pid for process in processes_of()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [os.environ["GLIDEPATH_PYTHON"], str(places.TOP / "demo/run.py")],
                env=os.environ | {"PORT": str(self.port), "DEMO_DIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        def said() -> bool:
            if self.process.poll() is not None:
                raise NotInTime(self.log.read_text())
            return f"Glidepath is ready: {self.url.rstrip('/')}" in self.log.read_text().splitlines()

        eventually("the demo says that it is ready", said, READY_WITHIN_S)

    def end(self, how: signal.Signals, statuses: tuple[int, ...] = (0,)) -> None:
        """Ends it and sees that nothing is left."""
        began = time.monotonic()
        self.process.send_signal(how)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert status in statuses, self.log.read_text()
        assert time.monotonic() - began < 45
        left = [one for one in processes_of() if one.pid not in self.before and str(self.folder) in str(one.argv)]
        assert left == []
        assert processes_told_of(self.folder) == []
        assert not Path(f"/run/netns/glidepath-demo-{self.port}").exists()
        with pytest.raises(requests.ConnectionError):
            requests.get(self.url, timeout=2)

    def logged_in(self, user: str, password: str = "demo") -> requests.Session | None:
        """A browser in which that user typed name and password; None when the Hub did not let them in."""
        session = requests.Session()
        page = session.get(f"{self.url}hub/login", timeout=10)
        fields = {"username": user, "password": password, "_xsrf": session.cookies.get("_xsrf", path="/hub/")}
        reply = session.post(page.url, data=fields, timeout=10, headers={"Referer": page.url}, allow_redirects=False)
        return session if reply.status_code == 302 else None


def processes_told_of(folder: Path) -> list[str]:
    """Processes that were told of this folder, in words or by their environment; not the tests themselves."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            told = words + b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{folder}/".encode() in told and int(entry.name) != os.getpid():
            found.append(f"{entry.name}: {words.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_the_demo_serves_both_sites_and_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    demo = Demo(tmp_path)
    try:
        demo.wait_ready()
        said = demo.log.read_text()
        assert said.count("Glidepath is ready") == 1, said
        for word in ("Try: start a server far away", "kill -9", "link set", "hub.log"):
            assert word in said, said
        nothing_connects_into_its_far_site(demo)
        assert demo.logged_in("ada", "wrong") is None
        for user in ("bob", "op"):
            session = demo.logged_in(user)
            assert session is not None, user
            assert session.get(f"{demo.url}hub/home", timeout=20).status_code == 200
            assert session.get(f"{demo.url}hub/admin", timeout=20).status_code == (200 if user == "op" else 403)
        session = demo.logged_in("ada")
        assert session is not None
        form = text_of(session.get(f"{demo.url}hub/spawn/ada", timeout=20).text)
        assert "This machine" in form and "Far away" in form, form[:1000]
        xsrf = session.cookies.get("_xsrf", path="/hub/")
        whole = {"site": "far", "cores": 1, "memory_mb": 1024, "gpus": 0, "walltime_min": 60}
        session.post(
            f"{demo.url}hub/spawn/ada",
            data=whole | {"_xsrf": xsrf},
            timeout=30,
            headers={"Referer": f"{demo.url}hub/spawn/ada"},
        )

        def works() -> bool:
            return "jupyter-config-data" in session.get(f"{demo.url}user/ada/lab", timeout=20).text

        eventually("ada is in her Lab", works, 60, every_s=1)
    finally:
        demo.end(how)


def nothing_connects_into_its_far_site(demo: Demo) -> None:
    """Something listens in there on every address, and is not reached."""
    namespace = f"glidepath-demo-{demo.port}"
    address = subprocess.run(
        ["ip", "-n", namespace, "-4", "-o", "address", "show", "scope", "global"],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.split()[3]
    listens = "import socket; s = socket.create_server(('', 8099)); print('up', flush=True); s.accept()"
    listener = subprocess.Popen(
        ["ip", "netns", "exec", namespace, os.environ["GLIDEPATH_PYTHON"], "-c", listens], stdout=subprocess.PIPE
    )
    try:
        assert listener.stdout is not None and listener.stdout.readline() == b"up\n"
        with pytest.raises(TimeoutError):
            socket.create_connection((address.partition("/")[0], 8099), timeout=2)
    finally:
        listener.kill()
        listener.wait(10)


@pytest.mark.parametrize("after_s", [0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_a_demo_that_is_ended_while_it_begins_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    demo = Demo(tmp_path)
    time.sleep(after_s)
    # Before it has read its own program there is nothing to end in order.
    demo.end(signal.SIGTERM, statuses=(0, -signal.SIGTERM))


@pytest.mark.parametrize("port", ["abc", "99999", "0", "-1", ""])
def test_a_port_that_is_none_is_told_in_one_sentence(tmp_path: Path, port: str) -> None:
    done = refused(tmp_path, port)
    assert "PORT" in done and f"{port!r}" in done, done


def test_a_taken_port_is_told_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refused(tmp_path, str(port))


def refused(folder: Path, port: str) -> str:
    """What a demo with that port says instead of running."""
    done = subprocess.run(
        [os.environ["GLIDEPATH_PYTHON"], str(places.TOP / "demo/run.py")],
        env=os.environ | {"PORT": port, "DEMO_DIR": str(folder / "demo")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
