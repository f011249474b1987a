"""Who somebody is comes from the Hub's own login and from keys, never from what a request says of itself.

Requests go the Hub's way, past it to the relay, and past that to the server's own socket.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from far import Far
from house import House
from people import Person
from service import Service, server_key, site, sites_config
from waiting import server_of

EVIL = "evil.example"


def claims(user: str) -> dict[str, str]:
    """Every header by which some proxy tells some server who asks, or what the address was."""
    names = ["X-JupyterHub-User", "X-Forwarded-User", "Remote-User", "X-Remote-User", "X-Auth-Request-User"]
    names += ["X-Forwarded-Preferred-Username", "X-Forwarded-Email", "X-WEBAUTH-USER", "X-Glidepath-User"]
    return dict.fromkeys(names, user) | {
        "X-Glidepath-Hub": "hub",
        "X-Glidepath-Key": server_key("hub", user),
        "X-Glidepath-Attempt": "01ARZ3NDEKTSV4RRFFQ69G5FAV-1",
        "X-Forwarded-Groups": "admin",
        "X-Forwarded-For": "127.0.0.1",
        "X-Real-IP": "127.0.0.1",
        "X-Forwarded-Host": EVIL,
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": f"/user/{user}/",
        "X-Scheme": "https",
        "Forwarded": f"for=127.0.0.1;host={EVIL};proto=https",
        "X-Original-URL": f"/user/{user}/api/status",
        "X-Rewrite-URL": f"/user/{user}/api/status",
        "X-HTTP-Method-Override": "DELETE",
        "X-XSRFToken": "none",
    }


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


#: Asks for a path of ada's server with these headers.
Way = Callable[[str, dict[str, str]], Answer]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("forged")
    folder.chmod(0o711)
    sites = [site("here", folder), site("far", folder, far)]
    with House(folder, far=far, sites=sites) as house:
        house.started("ada", site="far")
        house.started("bob", site="here")
        yield house


@pytest.fixture(params=["the Hub's proxy", "the relay", "the server's socket"])
def way(request: pytest.FixtureRequest, house: House) -> Way:
    """The nearer to the server, the fewer stand before it; what stands there must do alone."""
    if request.param == "the server's socket":
        return at_socket(house)
    base = house.url if request.param == "the Hub's proxy" else house.service.view("ada")["url"] + "/"

    def ask(path: str, headers: dict[str, str]) -> Answer:
        reply = requests.get(f"{base}user/ada/{path}", headers=headers, timeout=30, allow_redirects=False)
        return Answer(reply.status_code, lower(reply.headers.items()), reply.text)

    return ask


def at_socket(house: House) -> Way:
    argv = Path(f"/proc/{server_of(house.service.view('ada')['run']).pid}/cmdline").read_bytes().decode().split("\0")
    (path,) = [arg.partition("=")[2] for arg in argv if arg.startswith("--ServerApp.sock=")]

    def ask(where: str, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(path)
        connection.request("GET", f"/user/ada/{where}", headers=headers)
        reply = connection.getresponse()
        answer = Answer(reply.status, lower(reply.getheaders()), reply.read().decode(errors="replace"))
        connection.close()
        return answer

    return ask


def lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def gets_nothing(answer: Answer, what: str) -> None:
    """Sent to log in at the Hub, or refused; and never to somebody else's address."""
    assert answer.status in (302, 403, 404), f"{what}: {answer.status} {answer.text[:300]}"
    assert '"kernels"' not in answer.text and '"username"' not in answer.text, what
    location = answer.headers.get("location", "")
    assert EVIL not in location + answer.headers.get("set-cookie", ""), f"{what}: {location}"
    if answer.status == 302:
        assert "/hub/" in location, f"{what}: {location}"


def test_who_has_no_credential_is_nobody_whatever_the_request_says(way: Way, house: House) -> None:
    token = house.person("ada").token
    assert way("api/status", {"Authorization": f"token {token}"}).status == 200, "with one it works this way"
    forged = claims("ada")
    for name, value in forged.items():
        gets_nothing(way("api/status", {name: value}), name)
    for path in ("api/status", "api/contents", "api/me", "lab", "api/kernels"):
        gets_nothing(way(path, forged), path)


@pytest.mark.parametrize(
    "credential",
    ["token none", "Bearer none", "token ", "Basic YWRhOmRlbW8=", "Bearer null", "token undefined", "Negotiate x"],
)
def test_a_credential_that_is_none_opens_nothing(way: Way, credential: str) -> None:
    gets_nothing(way("api/status", {"Authorization": credential}), credential)
    gets_nothing(way("api/status", claims("ada") | {"Authorization": credential}), credential)
    gets_nothing(way(f"api/status?token={credential.split(' ')[1]}", {}), credential)


def test_bob_stays_bob_at_adas_server(way: Way, house: House) -> None:
    bob = house.person("bob")
    for headers in ({}, claims("ada")):
        refused = way("api/status", headers | {"Authorization": f"token {bob.token}"})
        gets_nothing(refused, "bob's token")
        assert refused.status == 403, "known, and not let in"


def test_bobs_cookies_and_their_likes_open_nothing_of_adas(way: Way, house: House) -> None:
    bob = logged_in(house, "bob")
    jar = {cookie.name: cookie.value or "" for cookie in bob.session.cookies}
    assert "jupyterhub-user-bob" in jar, f"bob has been at his own server: {sorted(jar)}"
    renamed = jar | {"jupyterhub-user-ada": jar["jupyterhub-user-bob"]}
    for cookies in (jar, renamed, {"jupyterhub-user-ada": "ada"}, {"username-ada": "ada"}):
        sent = "; ".join(f"{name}={value}" for name, value in cookies.items())
        gets_nothing(way("api/status", {"Cookie": sent}), f"cookies {sorted(cookies)}")
        gets_nothing(way("api/status", claims("ada") | {"Cookie": sent}), f"cookies {sorted(cookies)} and claims")


def test_ada_stays_ada_whoever_she_says_to_be(way: Way, house: House) -> None:
    own = {"Authorization": f"token {house.person('ada').token}"}
    told = json.loads(way("api/me", own | claims("bob")).text)
    assert told["identity"]["username"] == "ada"
    assert json.loads(way("api/status", own | claims("bob")).text)["kernels"] == 0


def logged_in(house: House, user: str) -> Person:
    """With the cookies of the Hub, of the user's own server and of the page of servers."""
    person = house.person(user)
    person.login()
    assert person.lab().status_code == 200
    assert person.page("services/glidepath/").status_code == 200
    return person


def test_the_page_of_servers_shows_and_ends_ones_own_whoever_one_says_to_be(house: House) -> None:
    bob, ada_run = logged_in(house, "bob"), house.service.view("ada")["run"]
    page = bob.page("services/glidepath/?all=1", headers=claims("ada"))
    assert ada_run not in page.text and house.service.view("bob")["run"] in page.text
    here = house.url + "services/glidepath/"
    xsrf = page.text.split('name="_xsrf" value="')[1].split('"')[0]
    fields = {"_xsrf": xsrf, "key": server_key("hub", "ada"), "run": ada_run}
    for headers in ({}, claims("ada"), claims("op")):
        reply = bob.session.post(here + "cancel", data=fields, headers=headers | {"Referer": here}, timeout=30)
        assert reply.status_code == 404, reply.text[:300]
        asked = bob.session.post(here + "placement", json={"user": "ada"}, headers=headers, timeout=30)
        assert asked.status_code == 403, asked.text[:300]
    assert house.service.state("ada") == "ready"
    without = dict(fields, key=server_key("hub", "bob"), run=house.service.view("bob")["run"], _xsrf="x")
    for origin in ({}, {"Origin": f"http://{EVIL}", "Sec-Fetch-Site": "cross-site"}):
        reply = bob.session.post(here + "cancel", data=without, headers=origin, timeout=30)
        assert reply.status_code == 403, "no other page sends this for bob"
    assert house.service.state("bob") == "ready"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("forged-hubs")
    folder.chmod(0o711)
    hubs = [{"name": name, "api_url": "http://127.0.0.1:9/hub/api"} for name in ("east", "west")]
    service = Service(folder, sites_config([site("queue", folder, process_queue_delay_s=3000)], None), hubs)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def test_a_hub_is_known_by_its_secret_alone(service: Service) -> None:
    """Of every operation: without the secret, with it in another place, and with another Hub's."""
    east, west = (service.of_hub(name).secret_file.read_text().strip() for name in ("east", "west"))
    server = "/servers/west.ada."
    operations: list[tuple[str, str, Any]] = [
        ("GET", "/servers", None),
        ("GET", server, None),
        ("PUT", server, {"spawn_id": "1", "argv": ["x"], "env": {}, "prefix": "/user/ada/"}),
        ("DELETE", server, None),
        ("DELETE", server + "/home", None),
        ("GET", server + "/events", None),
        ("GET", "/events", None),
        ("POST", "/placement", {"user": "ada"}),
        ("POST", "/form", {"user": "ada"}),
    ]
    assert service.of_hub("west").ask("PUT", server, json=operations[2][2]).status_code == 200
    said: dict[str, str] = claims("ada") | {"X-Glidepath-Hub": "west", "X-Forwarded-Prefix": "/v1/hubs/west"}
    nobody: list[dict[str, str]] = [
        {},
        said,
        {"Authorization": f"token {west}"},
        {"Authorization": west},
        {"Authorization": f"Basic {west}"},
        {"Authorization": f"Bearer {west[:-1]}"},
        {"Authorization": f"Bearer {west}x"},
        {"Authorization": "Bearer "},
        {"Cookie": f"Authorization=Bearer {west}"},
        {"X-Authorization": f"Bearer {west}"},
        {"Proxy-Authorization": f"Bearer {west}"},
    ]
    base = service.facts["api"] + "/v1/hubs/"
    for method, path, body in operations:
        for headers in nobody:
            reply = requests.request(method, base + "west" + path, headers=headers, json=body, timeout=20)
            assert reply.status_code == 401, f"{method} {path} {sorted(headers)}: {reply.status_code}"
        query = f"?access_token={west}&token={west}"
        assert requests.request(method, base + "west" + path + query, json=body, timeout=20).status_code == 401
        of_east = said | {"Authorization": f"Bearer {east}"}
        for hub in ("west", "east/../west", "WEST", "west%00", "east%2f..%2fwest"):
            reply = requests.request(method, base + hub + path, headers=of_east, json=body, timeout=20)
            assert reply.status_code == 404, f"{method} {hub} {path}: {reply.status_code} {reply.text[:200]}"
        if "/servers/" in path:  # its own path, another Hub's key
            reply = requests.request(method, base + "east" + path, headers=of_east, json=body, timeout=20)
            assert reply.status_code == 404, f"{method} {path}: {reply.status_code}"
    assert service.of_hub("west").state("ada") == "queued", "nothing came of it"
