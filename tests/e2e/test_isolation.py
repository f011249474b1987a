"""What one user can learn of another, and of the service, from inside a server. Ada is the attacker."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from far import Far
from house import House
from people import Kernel
from waiting import agent_of, processes_of, server_of

PROBE = """
import json, os, socket, stat
def can(what):
    try:
        what()
        return True
    except (OSError, ValueError) as error:
        return False
def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
def listing(path):
    os.listdir(path)
def reading(path):
    open(path, 'rb').read(1)
print(json.dumps({{name: can(lambda: globals()[kind](path)) for name, (kind, path) in {targets!r}.items()}}))
"""


#: Calls of the Hub's API from a kernel, with the token that its server was given, and the status of each answer.
CALLS = """
import json, os, urllib.error, urllib.request
def status(method, path, body):
    url = os.environ['JUPYTERHUB_API_URL'] + path
    headers = {{'Authorization': 'token ' + os.environ['JUPYTERHUB_API_TOKEN'], 'Content-Type': 'application/json'}}
    request = urllib.request.Request(url, body.encode() or None, headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([status(*call) for call in {calls!r}]))
"""


@pytest.fixture(scope="module", params=["here", "far"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, str]]:
    assert os.geteuid() == 0, "accounts can be told apart only when the tests run as root"
    folder = tmp_path_factory.mktemp("isolation")
    folder.chmod(0o711)
    far = Far()
    far.build()
    try:
        with House(folder, far=far) as house:
            yield house, request.param
    finally:
        far.remove()


def asked(kernel: Kernel, targets: dict[str, tuple[str, str]]) -> dict[str, bool]:
    found: dict[str, bool] = json.loads(kernel.run(PROBE.format(targets=targets)))
    return found


def sockets_of(pid: int) -> list[str]:
    """Paths of the unix sockets that this server was told to listen on."""
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return [arg.partition("=")[2] for arg in argv if arg.startswith("--ServerApp.sock=")]


def test_ada_reads_neither_bobs_socket_nor_his_environment_nor_his_files(house: tuple[House, str]) -> None:
    home, site = house
    ada_view: dict[str, Any] = home.started("ada", site=site)
    bob_view: dict[str, Any] = home.started("bob", site=site)
    ada_server, bob_server = server_of(ada_view["run"]), server_of(bob_view["run"])
    bob_agent = agent_of(bob_view["run"])
    assert ada_server.uid != bob_server.uid and 0 not in (ada_server.uid, bob_server.uid)

    home.person("bob").upload("secret.txt", b"bob's own")
    bob_home = Path(f"/proc/{bob_server.pid}/environ").read_bytes()
    bob_home_dir = next(part.partition(b"=")[2].decode() for part in bob_home.split(b"\0") if part.startswith(b"HOME="))
    bob_socket = sockets_of(bob_server.pid)[0]
    own_socket = sockets_of(ada_server.pid)[0]
    assert Path(bob_socket).is_socket() and Path(own_socket).is_socket()
    state = home.service.state_dir
    targets = {
        "own home": ("listing", os.path.dirname(own_socket)),
        "own environment": ("reading", f"/proc/{ada_server.pid}/environ"),
        "bob's socket": ("connect", bob_socket),
        "the folder of bob's socket": ("listing", os.path.dirname(bob_socket)),
        "bob's environment": ("reading", f"/proc/{bob_server.pid}/environ"),
        "the environment of bob's agent": ("reading", f"/proc/{bob_agent.pid}/environ"),
        "the memory of bob's agent": ("reading", f"/proc/{bob_agent.pid}/maps"),
        "bob's home": ("listing", bob_home_dir),
        "bob's file": ("reading", f"{bob_home_dir}/secret.txt"),
        "the service's state": ("listing", str(state)),
        "the store": ("reading", str(state / "glidepath.db")),
        "the attach file": ("reading", str(state / "service.json")),
        "the seal's key": ("reading", str(state / "keys" / "seal.key")),
        "the Hub's secret": ("reading", str(home.service.secret_file)),
        "the config": ("reading", str(state / "config.json")),
        "the service's environment": ("reading", f"/proc/{home.service.pid}/environ"),
    }
    absent = [name for name, (_, path) in targets.items() if not os.path.exists(path)]
    assert not absent, f"asking for what is not there shows nothing: {absent}"
    with home.person("ada").kernel() as kernel:
        seen = asked(kernel, targets)
    expected = {name: name.startswith("own") for name in seen}
    assert seen == expected
    for user in ("ada", "bob"):
        home.stopped(user)


def test_a_servers_own_token_opens_nothing_of_the_hub_but_its_own_affairs(house: tuple[House, str]) -> None:
    """Through the agent's forward, to the real Hub: what it refuses, it refuses here too, and nothing is added."""
    home, site = house
    bob: dict[str, Any] = home.started("bob", site=site)
    home.started("ada", site=site)
    own = [
        ("GET", "/user", ""),
        ("POST", "/users/ada/activity", json.dumps({"last_activity": "2026-01-01T00:00:00Z"})),
    ]
    others = [
        ("GET", "/users", ""),
        ("GET", "/users/bob", ""),
        ("POST", "/users/bob/activity", json.dumps({"last_activity": "2026-01-01T00:00:00Z"})),
        ("DELETE", "/users/bob/server", ""),
        ("POST", "/users/bob/tokens", "{}"),
        ("POST", "/users/ada/tokens", json.dumps({"roles": ["admin"]})),
        ("POST", "/users/eve", "{}"),
        ("DELETE", "/users/bob", ""),
        ("PATCH", "/users/ada", json.dumps({"admin": True})),
        ("GET", "/proxy", ""),
        ("GET", "/services", ""),
        ("POST", "/shutdown", "{}"),
        ("GET", "/../../services/glidepath/", ""),
    ]
    with home.person("ada").kernel() as kernel:
        told: list[int] = json.loads(kernel.run(CALLS.format(calls=own + others)))
    assert all(status in (200, 204) for status in told[: len(own)]), told
    answers = dict(zip([f"{method} {path}" for method, path, _ in others], told[len(own) :], strict=True))
    assert {name for name, status in answers.items() if status not in (401, 403, 404, 405)} == set(), answers
    assert home.service.view("bob")["run"] == bob["run"] and home.service.view("bob")["state"] == "ready"
    for user in ("ada", "bob"):
        home.stopped(user)


def test_no_secret_is_seen_from_outside(house: tuple[House, str]) -> None:
    home, site = house
    view = home.started("ada", site=site)
    server = server_of(view["run"])
    environ = dict(
        part.split(b"=", 1) for part in Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0") if b"=" in part
    )
    token = environ[b"JUPYTERHUB_API_TOKEN"].decode()
    home_secret = home.settings["server_secret"]
    assert environ[b"HOUSE_SECRET"].decode() == home_secret
    secrets = {"the Hub token": token, "a secret of the environment": home_secret}
    secrets["the Hub's secret"] = home.service.secret_file.read_text().strip()

    places: dict[str, bytes] = {}
    for process in processes_of(view["run"]):
        places[f"argv of {process.argv[:2]}"] = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        if process.is_agent:
            places["environment of the agent"] = Path(f"/proc/{process.pid}/environ").read_bytes()
    for root in (home.folder, home.service.state_dir):
        for path in root.rglob("*"):
            allowed = path == home.service.secret_file or path.name in ("settings.json", "hub.sqlite")
            if path.is_file() and not path.is_symlink() and not allowed and "homes" not in path.parts:
                with contextlib.suppress(FileNotFoundError):  # the Hub's journal, say, is there for a moment
                    places[str(path)] = path.read_bytes()
    tickets = [name for name, content in places.items() if b"eyJ" in content and b'"ticket"' in content]
    assert not tickets, f"a ticket lies in {tickets}"
    found = [
        f"{what} in {where}"
        for what, secret in secrets.items()
        for where, content in places.items()
        if secret.encode() in content
    ]
    assert not found
    home.stopped("ada")
