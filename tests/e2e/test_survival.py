"""What is killed, cut or lost, and what lives on: runs, kernels, every byte of an open stream."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import websocket

from far import Far
from house import House
from people import Kernel, lost_ticks
from service import DEADLINES, site
from waiting import agent_of, eventually, processes_of, server_of, stays

#: Short, so that "longer than http_timeout" can be waited for.
HTTP_TIMEOUT_S = 5
LONGER_S = HTTP_TIMEOUT_S + 4
BIG_BYTES = 200 * 1024 * 1024

#: A cell that counts, slowly enough that something can be killed meanwhile.
COUNTING = "import time\nfor n in range({n}):\n    print('tick', n, flush=True); time.sleep(0.25)"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("survival")
    folder.chmod(0o711)
    far = Far()
    far.build()
    try:
        sites = [
            site("here", folder),
            site("far", folder, far),
            site("busy", folder, process_queue_delay_s=LONGER_S + 14),
            site("queue", folder, process_queue_delay_s=3000),
            site("full", folder, process_slots=1),
        ]
        # A run may be dialling for as long as a busy machine needs to start a service again.
        patient = {"deadlines": DEADLINES | {"dialling_s": 90}}
        with House(folder, far=far, sites=sites, http_timeout=HTTP_TIMEOUT_S, more_config=patient) as house:
            yield house
    finally:
        far.remove()


def submits(house: House, run: str) -> int:
    """Jobs of this run that live: each has an agent of its own."""
    return sum(process.is_agent for process in processes_of(run))


def lost_track(house: House, user: str) -> None:
    """Makes the Hub forget that it ever started this server, as a lost database row does."""
    house.kill_hub()
    with sqlite3.connect(house.folder / "hub.sqlite") as books:
        (user_id,) = books.execute("SELECT id FROM users WHERE name = ?", (user,)).fetchone()
        rows = books.execute("SELECT server_id FROM spawners WHERE user_id = ?", (user_id,)).fetchall()
        books.execute("UPDATE spawners SET server_id = NULL, state = '{}' WHERE user_id = ?", (user_id,))
        for (server_id,) in rows:
            books.execute("DELETE FROM servers WHERE id = ?", (server_id,))
    house.restart_hub()


# ---- the Hub ------------------------------------------------------------------------------------------------------


def test_a_queued_run_outlives_the_hub_and_is_submitted_once(house: House) -> None:
    queued_through_a_kill_of_the_hub(house)


def queued_through_a_kill_of_the_hub(house: House) -> None:
    """The site is full for longer than http_timeout, before the Hub is there again and after."""
    house.started("stub-well-first", site="full")
    user = "stub-well-queued"
    assert house.ask_for(user, site="full").status_code == 202
    queued = house.service.wait_state(user, "queued")
    house.kill_hub()
    time.sleep(LONGER_S)
    house.restart_hub()

    def waits() -> bool:
        return house.service.state(user) == "queued" and (house.model(user) or {}).get("pending") == "check"

    eventually("the Hub looks for it", waits, 20)
    stays("it is queued and the Hub looks for it", waits, LONGER_S)
    assert submits(house, queued["run"]) == 0
    house.stopped("stub-well-first")
    ready = house.service.wait_state(user, "ready", within_s=60)
    assert (ready["run"], ready["attempt"]) == (queued["run"], 1)
    house.wait_ready(user, within_s=30)
    assert submits(house, ready["run"]) == 1
    house.stopped(user)


def test_a_queued_run_can_be_cancelled_while_the_hub_waits_for_it(house: House) -> None:
    user = "stub-well-cancelled"
    assert house.ask_for(user, site="queue").status_code == 202
    run = house.service.wait_state(user, "queued")["run"]
    house.kill_hub()
    house.restart_hub()
    reply = house.service.ask("DELETE", f"/servers/{house.service.view(user)['key']}?run={run}")
    assert reply.status_code < 300, reply.text
    end = house.service.wait_state(user, "ended")["end"]
    assert end["reason"] == "cancelled", end
    house.wait_gone(user)
    assert not processes_of(run)


@pytest.mark.parametrize("trouble", ["link cut", "service down"])
def test_a_hub_restarted_in_trouble_stops_nothing(house: House, trouble: str) -> None:
    assert house.far is not None
    user = f"stub-well-{trouble.replace(' ', '')}"
    before = house.started(user, site="far")
    agent = agent_of(before["run"])
    house.kill_hub()
    service_pid = 0
    if trouble == "link cut":
        house.far.cut()
    else:
        service_pid = house.service.pid
        os.kill(service_pid, 19)  # SIGSTOP: it is there and says nothing
    try:
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(house.restart_hub)
            time.sleep(LONGER_S)
            assert agent_of(before["run"]).pid == agent.pid
            house_back_late = trouble == "service down"
            if not house_back_late:
                starting.result(60)
                stays("the agent lives", lambda: agent_of(before["run"]).pid == agent.pid, LONGER_S)
            else:
                os.kill(service_pid, 18)
                service_pid = 0
                starting.result(90)
    finally:
        house.far.restore()
        if service_pid:
            os.kill(service_pid, 18)
    house.wait_ready(user, within_s=60)
    after = house.service.wait_state(user, "ready")
    assert after["run"] == before["run"]
    answer = eventually("it is reached", lambda: house.person(user).ask("GET", "api"), 30)
    assert answer.json()["user"] == user
    house.stopped(user)


def test_a_server_that_the_hub_lost_is_found_with_its_kernel_and_a_fresh_login_works(house: House) -> None:
    before = house.started("ada", site="far")
    with house.person("ada").kernel() as kernel:
        kernel.run("answer = 42")
        kernel_id = kernel.id
    lost_track(house, "ada")
    assert not (house.model("ada") or {}).get("ready"), "the Hub was to have lost it"
    back = house.person("ada")
    back.login()
    back.choose(site="here", cores=1)
    house.wait_ready("ada")
    after = house.service.view("ada")
    assert after["run"] == before["run"], "a second server was started beside the first"
    fresh = house.person("ada")  # a browser that has been nowhere yet
    fresh.login()
    page = fresh.lab()
    assert page.status_code == 200 and "/user/ada/lab" in page.url, f"{page.status_code} {page.url}"
    with Kernel(fresh, "", kernel_id) as kernel:
        assert kernel.run("print(answer)") == "42"
    activity = house.model("ada")
    assert activity and activity["ready"]
    house.stopped("ada")


# ---- the service --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["queued", "dialling", "ready"])
def test_a_run_outlives_the_service(house: House, state: str) -> None:
    assert house.far is not None
    user = f"stub-well-service-{state}"
    if state == "dialling":
        house.far.cut()
    try:
        house.ask_for(user, site={"queued": "busy", "dialling": "far", "ready": "far"}[state])
        before = house.service.wait_state(user, state)
        if state == "ready":
            house.wait_ready(user)
        killed = house.service.kill()
        house.service.wait_up(other_than=killed)
    finally:
        house.far.restore()
    after = house.service.wait_state(user, "ready", within_s=60)
    assert (after["run"], after["attempt"]) == (before["run"], 1)
    assert submits(house, before["run"]) == 1
    house.wait_ready(user)
    eventually("it answers", lambda: house.person(user).ask("GET", "api").status_code == 200, 30)
    house.stopped(user)


def test_output_made_while_the_service_was_dead_arrives_after_reconnecting(house: House) -> None:
    view = house.started("ada", site="far")
    server = server_of(view["run"])
    with house.person("ada").kernel() as kernel:
        asked = kernel.send(COUNTING.format(n=80))
        time.sleep(1)
        killed = house.service.kill()
        with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
            kernel.output(asked, within_s=10)
        house.service.wait_up(other_than=killed)
        kernel.connect(within_s=40)
        output = kernel.output(asked, within_s=60)
        # One may have been inside the service at that moment. All that Jupyter still had must come.
        assert len(lost_ticks(output, 80)) <= 1, output
        assert kernel.run("n") == "79", "the cell did not run to its end"
    assert server_of(view["run"]).pid == server.pid
    house.stopped("ada")


# ---- the link -----------------------------------------------------------------------------------------------------


def test_a_link_cut_of_a_minute_loses_no_byte(house: House) -> None:
    assert house.far is not None
    far = house.far
    house.started("ada", site="far")
    person = house.person("ada")
    with person.kernel() as kernel:
        kernel.run(
            "import os, hashlib\n"
            f"with open('big.bin', 'wb') as f:\n    [f.write(os.urandom(1 << 20)) for _ in range({BIG_BYTES} >> 20)]\n"
            "digest = hashlib.sha256(open('big.bin', 'rb').read()).hexdigest()"
        )
        expected = kernel.run("print(digest)")
        cut_at: list[float] = []

        def cut_once(read_bytes: int) -> None:
            if not cut_at and read_bytes > BIG_BYTES // 8:
                cut_at.append(time.monotonic())
                far.cut()

        asked = kernel.send(COUNTING.format(n=100))
        with ThreadPoolExecutor(1) as pool:
            download = pool.submit(person.download, "big.bin", "", cut_once)
            try:
                eventually("the cable is pulled in mid-download", lambda: bool(cut_at), 60)
                time.sleep(60)
            finally:
                far.restore()
            content = download.result(120)
        assert len(content) == BIG_BYTES
        assert hashlib.sha256(content).hexdigest() == expected
        output = kernel.output(asked, within_s=60)
        assert output.split() == [word for n in range(100) for word in ("tick", str(n))], output[-300:]
    house.stopped("ada")


def test_a_longer_cut_ends_the_streams_and_nothing_else(house: House) -> None:
    """A download ends as one that is not whole, a WebSocket as one that was lost; neither as one that is done."""
    assert house.far is not None
    far = house.far
    view = house.started("ada", site="far", memory_mb=4096)
    server = server_of(view["run"])
    person = house.person("ada")
    with person.kernel() as kernel, ThreadPoolExecutor(1) as pool:
        kernel.run(f"kept = 'still here'\nwith open('big.bin', 'wb') as f: f.truncate({BIG_BYTES})")
        is_cut = threading.Event()

        def cut_once(read_bytes: int) -> None:
            if not is_cut.is_set() and read_bytes > BIG_BYTES // 8:
                far.cut()
                is_cut.set()

        try:
            # From the relay itself: the Hub's proxy keeps a download open that was cut short behind it.
            download = pool.submit(person.download, "big.bin", "", cut_once, home=f"{view['url']}/")
            assert is_cut.wait(60), "the cable was to be pulled in mid-download"
            assert kernel.socket is not None
            kernel.socket.settimeout(100)
            with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
                while True:
                    opcode, content = kernel.socket.recv_data()
                    assert opcode != websocket.ABNF.OPCODE_CLOSE, f"closed as if all were said: {content!r}"
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                download.result(30)
            refused = requests.get(view["url"] + "/user/ada/api/status", timeout=60)
            assert refused.status_code == 503
            assert "not answering" in refused.text.lower(), refused.text
            assert house.service.state("ada") == "ready"
            assert server_of(view["run"]).pid == server.pid
        finally:
            far.restore()
        kernel.connect(within_s=40)
        assert kernel.run("print(kept)") == "still here"
    assert (house.model("ada") or {}).get("ready"), "the Hub was not to stop it"
    house.stopped("ada")
