"""`make demo`: one line when it is ready, two sites, and nothing left at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import requests

import places
from people import text_of
from waiting import NotInTime, eventually, free_port, processes_of


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_the_demo_serves_both_sites_and_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    port = free_port()
    tmp_path.chmod(0o711)
    folder = tmp_path / "demo"
    environ = os.environ | {"PORT": str(port), "DEMO_DIR": str(folder)}
    before = {process.pid for process in processes_of()}
    with (tmp_path / "demo.log").open("wb") as log:
        demo = subprocess.Popen(
            [os.environ["GLIDEPATH_PYTHON"], str(places.TOP / "demo/run.py")],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        ready = f"Glidepath is ready: http://127.0.0.1:{port}"

        def said() -> bool:
            text = (tmp_path / "demo.log").read_text()
            if demo.poll() is not None:
                raise NotInTime(text)
            return ready in text.splitlines()

        eventually("the demo says that it is ready", said, 60)
        session = requests.Session()
        page = session.get(f"http://127.0.0.1:{port}/hub/login", timeout=10)
        xsrf = session.cookies.get("_xsrf", path="/hub/")
        session.post(
            page.url,
            data={"username": "ada", "password": "demo", "_xsrf": xsrf},
            timeout=10,
            headers={"Referer": page.url},
        )
        form = text_of(session.get(f"http://127.0.0.1:{port}/hub/spawn/ada", timeout=20).text)
        assert "This machine" in form and "Far away" in form, form[:1000]
        xsrf = session.cookies.get("_xsrf", path="/hub/")
        whole = {"site": "far", "cores": 1, "memory_mb": 1024, "gpus": 0, "walltime_min": 60}
        session.post(
            f"http://127.0.0.1:{port}/hub/spawn/ada",
            data=whole | {"_xsrf": xsrf},
            timeout=30,
            headers={"Referer": f"http://127.0.0.1:{port}/hub/spawn/ada"},
        )

        def works() -> bool:
            lab = session.get(f"http://127.0.0.1:{port}/user/ada/lab", timeout=20)
            return "jupyter-config-data" in lab.text

        eventually("ada is in her Lab", works, 60, every_s=1)
    finally:
        began = time.monotonic()
        demo.send_signal(how)
        try:
            status = demo.wait(60)
        except subprocess.TimeoutExpired:
            demo.kill()
            raise
    assert status == 0, (tmp_path / "demo.log").read_text()
    assert time.monotonic() - began < 45
    left = [process for process in processes_of() if process.pid not in before and str(folder) in str(process.argv)]
    assert left == []
    for name in ("glidepath-spawner", "configurable-http-proxy", "jupyterhub"):
        assert not processes_with(str(folder), name), name
    assert not Path(f"/run/netns/glidepath-demo-{port}").exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/", timeout=2)


def processes_with(*words: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if all(word in line for word in words):
                found.append(line)
    return found


def test_a_taken_port_is_told_in_one_sentence(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [os.environ["GLIDEPATH_PYTHON"], str(places.TOP / "demo/run.py")],
            env=os.environ | {"PORT": str(port), "DEMO_DIR": str(tmp_path / "demo")},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and str(port) in done.stderr, done.stderr
