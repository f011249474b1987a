"""The whole service with its store in PostgreSQL: a server outlives the service and its database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from house import House
from postgres import PASSWORD, Postgres
from service import Service, site, sites_config
from waiting import eventually, free_port, processes_of, stays

BEGINS = "the store cannot write"
ENDS = "the store can write again"


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[tuple[House, Service, Postgres]]:
    database = Postgres(tmp_path)
    try:
        hub_port = free_port()
        hubs = [{"name": "hub", "api_url": f"http://127.0.0.1:{hub_port}/hub/api"}]
        config = sites_config([site("here", tmp_path)], None, store={"url_file": str(database.url_file)})
        service = Service(tmp_path, config, hubs)
        service.start()
        house = House(tmp_path / "hub", service=service)
        house.hub_port = house.settings["hub_port"] = hub_port
        try:
            with house:
                yield house, service, database
        finally:
            service.stop()
    finally:
        database.close()


def test_a_server_outlives_the_service_and_its_database(apart: tuple[House, Service, Postgres]) -> None:
    house, service, database = apart
    user = "stub-well-pg"
    run = house.started(user)["run"]

    def starts() -> int:
        reply = house.person(user).ask("GET", "api")
        return int(reply.json()["starts"]) if reply.status_code == 200 else 0

    eventually("it answers", lambda: starts() == 1, 30)
    service.kill()
    service.start()
    service.wait_state(user, "ready")
    eventually("it answers through the next service", lambda: starts() == 1, 30)

    database.end()
    eventually("the service says that it is not ready", lambda: ready(service) == 503, 30)
    eventually("it is counted", lambda: counted(service, "glidepath_store_writable") == 0, 20)
    stays("its server is reached without the database", lambda: starts() == 1, 5)
    assert service.state(user) == "ready"

    database.serve()
    eventually("the service is ready again", lambda: ready(service) == 200, 30)
    eventually("it is counted", lambda: counted(service, "glidepath_store_writable") == 1, 20)
    assert counted(service, "glidepath_store_outages_total") == 1
    told = [line for line in service.log.splitlines() if BEGINS in line or ENDS in line]
    assert len(told) == 2, told
    assert BEGINS in told[0]
    assert ENDS in told[1]
    assert service.view(user)["run"] == run
    assert starts() == 1

    house.stopped(user)
    eventually("it is settled", lambda: database.sql("SELECT count(*) FROM runs WHERE settled = 0").strip() == "0", 20)
    assert database.sql("SELECT state FROM runs").split() == ["ended"]
    assert database.sql("SELECT count(*) FROM orders").strip() == "0"
    assert not processes_of(run)
    assert not list(service.state_dir.glob("*.db*")), "nothing is kept beside it"
    for file in [service.log, service.config_file.read_text(), (service.state_dir / "service.json").read_text()]:
        assert PASSWORD not in file


def ready(service: Service) -> int:
    return requests.get(f"{service.facts['metrics']}/health/ready", timeout=10).status_code


def counted(service: Service, name: str) -> float:
    lines = requests.get(f"{service.facts['metrics']}/metrics", timeout=10).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))
