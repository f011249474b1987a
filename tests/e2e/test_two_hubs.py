"""Two Hubs with the same base URL and the same user on one service; other base URLs; subdomains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import requests

from house import House
from people import Person
from service import Service, site, sites_config
from waiting import free_port


@pytest.fixture(scope="module")
def two_hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, House]]:
    """Hubs `east` and `west`, each with a user `stub-well`, on one service."""
    folder = tmp_path_factory.mktemp("two-hubs")
    folder.chmod(0o711)
    east_port, west_port = free_port(), free_port()
    hubs = [
        {"name": "east", "api_url": f"http://127.0.0.1:{east_port}/hub/api"},
        {"name": "west", "api_url": f"http://127.0.0.1:{west_port}/hub/api"},
    ]
    service = Service(folder, sites_config([site("here", folder)], None), hubs)
    service.start()
    houses: list[House] = []
    try:
        for name, port in (("east", east_port), ("west", west_port)):
            house = House(folder / name, hub_name=name, service=service, sites=[])
            house.hub_port = port
            house.settings["hub_port"] = port
            houses.append(house)
            house.start()
        yield houses[0], houses[1]
    finally:
        for house in houses:
            house.close()
        service.stop()


def test_the_same_user_of_two_hubs_has_two_servers(two_hubs: tuple[House, House]) -> None:
    east, west = two_hubs
    runs = {house.started("stub-well")["run"] for house in (east, west)}
    assert len(runs) == 2
    pids = {house.person("stub-well").ask("GET", "api").json()["pid"] for house in (east, west)}
    assert len(pids) == 2
    for house in (east, west):
        house.stopped("stub-well")


def test_no_host_header_leads_to_the_other_hubs_server(two_hubs: tuple[House, House]) -> None:
    east, west = two_hubs
    for house in (east, west):
        house.started("stub-well")
    own = {house: house.person("stub-well").ask("GET", "api").json()["pid"] for house in (east, west)}
    relays = {house: house.service.view("stub-well")["url"] for house in (east, west)}
    assert relays[east] != relays[west]
    for house, other in ((east, west), (west, east)):
        for header in ("Host", "X-Forwarded-Host", "Forwarded", "X-Forwarded-For"):
            value = relays[other].removeprefix("http://")
            value = f"host={value}" if header == "Forwarded" else value
            reply = requests.get(relays[house] + "/user/stub-well/api", headers={header: value}, timeout=20)
            assert reply.json()["pid"] == own[house], header
    for house in (east, west):
        house.stopped("stub-well")


def test_one_hubs_secret_opens_nothing_of_the_other(two_hubs: tuple[House, House]) -> None:
    east, west = two_hubs
    west.started("stub-well")
    secret = east.service.secret_file.read_text().strip()
    base = east.service.facts["api"] + "/v1/hubs/west/servers"
    for path in ("", "/west.stub-well.", "/east.stub-well."):
        reply = requests.get(base + path, headers={"Authorization": f"Bearer {secret}"}, timeout=20)
        assert reply.status_code in (403, 404), f"{path}: {reply.status_code} {reply.text}"
        assert "run" not in reply.text or "stub-well" not in reply.text
    west.stopped("stub-well")


@pytest.mark.parametrize(
    ("base_url", "subdomain"),
    [("/jhub/", ""), ("/", "hub.localhost")],
    ids=["base-url", "subdomains"],
)
def test_a_person_logs_in_and_works_below(tmp_path: Path, base_url: str, subdomain: str) -> None:
    tmp_path.chmod(0o711)
    with House(tmp_path, base_url=base_url, subdomain=subdomain) as house:
        person = house.person("ada")
        person.login()
        assert "This machine" in person.form()
        person.choose(site="here", cores=1)
        assert person.progress()[-1].get("ready")
        lab = person.lab()
        assert lab.status_code == 200 and "jupyter-config-data" in lab.text, lab.text[:1000]
        with person.kernel() as kernel:
            assert kernel.run("print(6 * 7)") == "42"
        page = person.session.get(page_of_servers(person), timeout=30)
        assert page.status_code == 200 and "My servers" in page.text, f"{page.url}: {page.text[:500]}"
        assert "This machine" in page.text
        relay = house.service.view("ada")["url"]
        prefix = f"{base_url}user/ada/"
        answer = requests.get(
            f"{relay}{prefix}api/status", headers={"Authorization": f"token {person.token}"}, timeout=20
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["kernels"] == 1
        # A path that is not below the Hub's own prefix leads nowhere.
        for path in ("/user/ada/api", "/user/ada/lab") if base_url != "/" else ("/user/bob/api", "/ada/api"):
            assert requests.get(relay + path, timeout=20).status_code == 503
        house.stopped("ada")


def page_of_servers(person: Person) -> str:
    """Where the Hub's own menu leads to. On a subdomain it leaves out the port, taking the usual one for granted."""
    home = person.page("hub/home")
    link = re.search(r'href="([^"]*/services/glidepath/)"', home.text)
    assert link, home.text
    where = urlsplit(urljoin(home.url, link.group(1)))
    return f"http://{where.hostname}:{person.house.port}{where.path}"
