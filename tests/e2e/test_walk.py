"""The main walk: log in, form, progress, Lab, cells, files; here and behind a link."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from far import Far
from house import House
from people import Kernel, text_of
from waiting import processes_of, server_of

SITES = pytest.mark.parametrize("where", ["here", "far"])
#: What a 200 MB file needs of a server that reads it whole.
ROOMY: dict[str, Any] = {"memory_mb": 4096}
MB = 1024 * 1024
Carried = TypeVar("Carried")


@SITES
def test_a_person_logs_in_chooses_on_the_form_sees_progress_and_runs_a_cell(house: House, where: str) -> None:
    ada = house.person("ada")
    ada.login()
    form = ada.form()
    for title in ("This machine", "The far site"):
        assert title in text_of(form)
    page = ada.choose(site=where, cores=1, memory_mb=2048, gpus=0, walltime_min=60)
    assert page.status_code == 200, text_of(page.text)[:800]

    events = ada.progress()
    assert events[-1].get("ready"), events
    assert any(house_title(where) in event.get("message", "") for event in events), events

    lab = ada.lab()
    assert lab.status_code == 200 and "jupyter-config-data" in lab.text
    with ada.kernel() as kernel:
        assert kernel.run("print(6 * 7)") == "42"
    routes = house.api("GET", "/proxy").json()
    assert routes["/user/ada/"]["target"] == house.service.view("ada")["url"], "the way leads through the relay"
    house.stopped("ada")


def house_title(where: str) -> str:
    return {"here": "This machine", "far": "The far site"}[where]


def test_nothing_can_connect_into_the_far_site(house: House, far: Far) -> None:
    """The far server is where it claims to be, and its namespace answers nobody."""
    view = house.started("bob", site="far")
    server = server_of(view["run"])
    assert os.readlink(f"/proc/{server.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert os.stat(f"/proc/{server.pid}/ns/net").st_ino == os.stat(far.path).st_ino
    with socket.socket() as knock:
        knock.settimeout(1)
        with pytest.raises(OSError):
            knock.connect((far.address, 22))
    bob = house.person("bob")
    with bob.kernel() as kernel:
        # From inside, the Hub is out of reach but for the link: the server's own calls to it go that way.
        code = (
            "import socket\n"
            f"s = socket.socket(); s.settimeout(1)\n"
            f"try:\n  s.connect(('127.0.0.1', {house.hub_port})); print('open')\n"
            "except OSError: print('closed')"
        )
        assert kernel.run(code) == "closed"
        said = kernel.run(
            "import os, urllib.request\n"
            "print(urllib.request.urlopen(os.environ['JUPYTERHUB_API_URL'] + '/', timeout=10).read().decode())"
        )
        assert '"version"' in said
    house.stopped("bob")


@SITES
def test_a_large_upload_and_download_while_a_kernel_echoes(house: House, where: str) -> None:
    house.started("ada", site=where, **ROOMY)
    ada = house.person("ada")
    content = random.Random(7).randbytes(200 * MB)
    digest = hashlib.sha256(content).digest()
    with ada.kernel() as kernel:
        kernel.run("1")
        echoes_go_on(kernel, "the upload", lambda: ada.upload("large.bin", content))
        downloads = echoes_go_on(kernel, "the downloads", lambda: [ada.download("large.bin") for _ in range(2)])
    assert {hashlib.sha256(got).digest() for got in downloads} == {digest}
    ada.ask("DELETE", "api/contents/large.bin")
    house.stopped("ada")


def echoes_go_on(kernel: Kernel, what: str, carry: Callable[[], Carried]) -> Carried:
    """Carries files while a kernel echoes: no echo may wait for as long as a good part of that takes."""
    done = threading.Event()

    def echo() -> list[float]:
        took_s: list[float] = []
        while not done.is_set():
            began = time.monotonic()
            said = str(len(took_s))
            assert kernel.run(f"print({said})", 60) == said
            took_s.append(time.monotonic() - began)
        return took_s

    with ThreadPoolExecutor(1) as pool:
        echoing = pool.submit(echo)
        began = time.monotonic()
        try:
            carried = carry()
        finally:
            carried_s = time.monotonic() - began
            done.set()
        took_s = echoing.result(90)
    assert len(took_s) >= 10, f"during {what} of {carried_s:.1f} s: {took_s}"
    assert max(took_s) < carried_s / 2, f"during {what} of {carried_s:.1f} s: {took_s}"
    return carried


@SITES
def test_a_file_saved_before_the_stop_is_there_after_the_next_start(house: House, where: str) -> None:
    house.started("ada", site=where)
    ada = house.person("ada")
    ada.upload("kept.txt", b"what I found")
    first = house.service.view("ada")["run"]
    house.stopped("ada")
    assert not processes_of(first)
    second = house.started("ada", site=where)
    assert second["run"] != first
    assert ada.download("kept.txt") == b"what I found"
    house.stopped("ada")


@SITES
def test_options_over_rest_are_all_optional(house: House, where: str) -> None:
    whole: dict[str, Any] = {"site": where, "cores": 1, "memory_mb": 1024, "gpus": 0, "walltime_min": 60}
    view = house.started("bob", **whole)
    assert view["site"] == where
    house.stopped("bob")
    assert house.started("bob")["site"] in ("here", "far")
    house.stopped("bob")


def test_bad_options_are_refused_all_at_once_and_in_words(house: House) -> None:
    bob = house.person("bob")
    bob.login()
    bob.choose(site="nowhere", cores="many", memory_mb=-5)
    last = bob.progress()[-1]
    assert last.get("failed"), last
    said = text_of(last["html_message"])
    for word in ("cores", "memory", "nowhere"):
        assert word in said, said[:1500]
    assert not (house.model("bob") or {}).get("ready")


def test_what_fits_nowhere_is_refused_with_a_sentence_per_site(house: House) -> None:
    reply = house.ask_for("bob", cores=1000)
    assert reply.status_code < 500, reply.text
    last = house.person("bob").progress()[-1]
    assert last.get("failed"), last
    said = text_of(last["html_message"])
    assert "This machine" in said and "The far site" in said and "core" in said, said
    # A refusal is no failure of the Hub: the next start works.
    house.started("bob", site="here")
    house.stopped("bob")
