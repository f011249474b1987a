"""The service beside its Hub: with nothing but `configure(c)`, through a kill of the Hub, and at its clean end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import places
from house import House
from waiting import agent_of, alive, eventually, processes_of


def test_one_call_is_a_hub_with_the_programs_of_the_package_that_lives_through_a_kill(tmp_path: Path) -> None:
    with House(tmp_path, bare=True) as house:
        view = house.started("ada")
        pid = house.service.pid
        programs = places.TOP / ".venv-hub6" / "bin"
        assert Path(os.readlink(f"/proc/{pid}/exe")) == programs / "glidepath-spawner"
        agent = Path(f"/proc/{agent_of(view['run']).pid}/exe").read_bytes()
        assert agent == (programs / "glidepath-agent").read_bytes()
        with house.person("ada").kernel() as kernel:
            assert kernel.run("print(6 * 7)") == "42"
        house.kill_hub()
        house.restart_hub()
        house.wait_ready("ada")
        assert house.service.pid == pid
        assert house.service.view("ada")["run"] == view["run"]
        house.stopped("ada")


@pytest.mark.parametrize("cleanup", [True, False], ids=["servers go", "servers stay"])
def test_a_clean_stop_of_the_hub_does_with_servers_and_service_as_it_is_told(tmp_path: Path, cleanup: bool) -> None:
    with House(tmp_path, cleanup_servers=cleanup) as house:
        run = house.started("stub-well-stays")["run"]
        pid = house.service.pid
        house.stop_hub()
        if cleanup:
            eventually("the service has ended", lambda: not alive(pid), 10)
            eventually("nothing of the server is left", lambda: not processes_of(run), 10)
        else:
            assert alive(pid) and processes_of(run)
            house.start()
            house.wait_ready("stub-well-stays")
            assert house.service.pid == pid
            assert house.service.view("stub-well-stays")["run"] == run
            house.stopped("stub-well-stays")


def test_the_agent_of_the_package_is_static() -> None:
    """It names no loader (ELF's PT_INTERP, type 3), so it starts on any Linux of its architecture."""
    program = Path(places.agent()).read_bytes()
    assert program[:5] == b"\x7fELF\x02"
    table, size, count = (int.from_bytes(program[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    kinds = [int.from_bytes(program[table + n * size : table + n * size + 4], "little") for n in range(count)]
    assert kinds and 3 not in kinds
