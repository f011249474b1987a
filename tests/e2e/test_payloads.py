"""Whatever stands in a request: it comes to the server letter by letter as one value, or is refused by its name.

A service alone, its API, its process backend and real agents; the table is tests/payloads.json.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

import places
from payloads import PAYLOADS, has_controls
from service import Service, server_key, site, sites_config
from waiting import agent_of, eventually, processes_of, server_of

#: What would be there if a payload had been run by somebody.
WITNESS = Path("/tmp/glidepath-was-here")
#: What a kind of GPU may be called.
WORD = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
OPTIONS = ("site", "cores", "memory_mb", "gpus", "gpu_kind", "gpu_memory_mb", "arch", "walltime_min", "preset")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("payloads")
    folder.chmod(0o711)
    shutil.copy(places.HERE / "servers" / "stub.py", folder / "stub.py")
    (folder / "stub.py").chmod(0o644)
    sites = [site("here", folder), site("queue", folder, process_queue_delay_s=3000, preference=-50)]
    service = Service(folder, sites_config(sites, None), [{"name": "main", "api_url": "http://127.0.0.1:9/hub/api"}])
    WITNESS.unlink(missing_ok=True)
    service.start()
    try:
        yield service
    finally:
        service.stop()
        for process in processes_of():
            if str(folder) in " ".join(process.argv):
                os.kill(process.pid, 9)
    assert not WITNESS.exists(), "a payload was run"


def start(service: Service, user: str, server: str = "", **more: Any) -> requests.Response:
    stub = str(service.state_dir.parent / "stub.py")
    prefix = "/".join(["/user", *(quote(name, safe="@~") for name in (user, server) if name), ""])
    body: dict[str, Any] = {
        "spawn_id": secrets.token_hex(8),
        "argv": [places.stub_python(), stub, "well", "--ServerApp.sock={socket}"],
    }
    body |= {"env": {"JUPYTERHUB_SERVICE_PREFIX": prefix, "JUPYTERHUB_USER": "x"}, "prefix": prefix} | more
    return service.ask("PUT", f"/servers/{server_key('main', user, server)}", json=body)


def stop(service: Service, user: str, server: str = "") -> None:
    reply = service.ask("DELETE", f"/servers/{server_key('main', user, server)}?now=true&wait_s=20")
    assert reply.status_code == 200 and reply.json()["state"] in ("ended", "none"), reply.text


def fields(reply: requests.Response) -> set[str]:
    assert reply.status_code == 422, f"{reply.status_code} {reply.text[:300]}"
    return {problem["field"] for problem in reply.json()["problems"]}


def of_itself(view: dict[str, Any], prefix: str) -> dict[str, Any]:
    told: dict[str, Any] = requests.get(f"{view['url']}{prefix}self", timeout=20).json()
    return told


def test_arguments_and_variables_come_letter_by_letter_and_the_rest_is_refused_by_name(service: Service) -> None:
    fitting = {name: text for name, text in PAYLOADS.items() if "\0" not in text}
    assert 47 <= len(fitting) < len(PAYLOADS)
    for name in PAYLOADS.keys() - fitting.keys():
        assert fields(start(service, "ada", env={"V": PAYLOADS[name]})) == {"env.V"}, name
        assert fields(start(service, "ada", argv=["x", PAYLOADS[name]])) == {"argv"}, name
    base = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/", "JUPYTERHUB_USER": "ada"}
    values = {f"P{number}": text for number, text in enumerate(fitting.values())}
    names = {text: "v" for text in fitting.values() if text and "=" not in text and len(text) < 1000}
    forged = {"GLIDEPATH_ATTEMPT": "01ARZ3NDEKTSV4RRFFQ69G5FAV-1", "GLIDEPATH_KEY": "main.root.", "GLIDEPATH_MARK": "x"}
    stub = str(service.state_dir.parent / "stub.py")
    # The socket's placeholder is the operator's, in a command that is the operator's.
    words = [text for name, text in fitting.items() if name != "template: placeholder of the socket"]
    argv = [places.stub_python(), stub, "well", "--ServerApp.sock={socket}", *words]
    reply = start(service, "ada", env=base | values | names | forged, argv=argv, options={"site": "here"})
    assert reply.status_code == 200, reply.text[:1000]
    view = service.wait_state("ada", "ready")
    told = of_itself(view, "/user/ada/")
    assert told["argv"][3:] == words
    assert {name: told["environ"].get(name) for name in values} == values
    assert {name: told["environ"].get(name) for name in names} == names
    assert told["environ"]["GLIDEPATH_ATTEMPT"] == f"{view['run']}-1", "no job passes for another"
    assert told["environ"]["GLIDEPATH_KEY"] == "main.ada."
    assert told["environ"]["GLIDEPATH_MARK"] != "x"
    agent = agent_of(view["run"])
    outside = b"\0".join(Path(f"/proc/{agent.pid}/{part}").read_bytes() for part in ("cmdline", "environ"))
    assert not [text for text in words if len(text) > 5 and text.encode() in outside], "the agent's own are as ever"
    stop(service, "ada")


@pytest.mark.parametrize("name", ["a=b", "=", "", "a\0b", "\0"])
def test_a_name_that_no_variable_can_have_is_refused(service: Service, name: str) -> None:
    assert fields(start(service, "ada", env={name: "v"})) == {"env"}


def test_every_option_takes_its_own_values_and_names_itself_when_it_refuses(service: Service) -> None:
    refused = 0
    for name, text in PAYLOADS.items():
        asked = {"user": "ada", "options": dict.fromkeys(OPTIONS, text)}
        reply = service.ask("POST", "/placement", json=asked)
        assert reply.status_code == 200, f"{name}: {reply.text}"
        problems = {problem["field"]: problem["message"] for problem in reply.json()["problems"]}
        if text.strip() == "":
            assert problems == {}, name  # left out
            continue
        word_of_its_own = {"gpu_kind"} if WORD.fullmatch(text.strip().lower()) else set()
        assert set(problems) == set(OPTIONS) - word_of_its_own, name
        assert not [said for said in problems.values() if has_controls(said) or len(said) > 500], name
        named = service.ask("POST", "/placement", json={"user": "ada", "options": {text: 1}}).json()["problems"]
        assert len(named) == 1 and not has_controls(named[0]["field"] + named[0]["message"]), name
        refused += 1
        assert fields(start(service, "ada", options={"site": text})) == {"options.site"}, name
    assert refused >= 47
    assert service.state("ada") in ("none", "ended")


def test_a_name_is_that_users_alone_or_no_name(service: Service) -> None:
    taken, homes = [], service.state_dir.parent / "jobs-queue" / "homes"
    for name, text in PAYLOADS.items():
        for user, server in ((text, ""), ("ada", text)):
            reply = start(service, user, server, options={"site": "queue"}, prefix="/user/somebody/")
            if has_controls(text) or "/" in text or len(text) > 255:
                assert reply.status_code == 404, f"{name}: {reply.status_code} {reply.text[:300]}"
                assert not has_controls(reply.json()["title"]), name
                continue
            assert reply.status_code == 200, f"{name}: {reply.text[:500]}"
            view = service.wait_state(user, "queued", server=server)
            assert (view["user"], view["server"]) == (user, server), name
            job = service.state_dir.parent / "jobs-queue" / "jobs" / f"{view['run']}-1"
            dial = json.loads((job / "own" / "dial.json").read_text())
            assert set(dial) == {
                "version",
                "home_url",
                "trust",
                "ticket",
                "attempt",
                "dial_deadline_s",
                "absence_limit_s",
            }
            assert dial["attempt"] == f"{view['run']}-1"
            taken.append((user, server))
    assert len(taken) >= 2 * 35, len(taken)
    users = {user for user, _ in taken}
    assert len(list(homes.iterdir())) == 1 and len(list((homes / "main").iterdir())) == len(users)
    listed = service.ask("GET", "/servers").json()["servers"]
    assert {(one["user"], one["server"]) for one in listed if one["state"] == "queued"} == set(taken)
    for user, server in taken:
        service.ask("DELETE", f"/servers/{server_key('main', user, server)}?now=true")
    eventually("all are over", lambda: not [one for one in live(service) if one["state"] != "ended"], 60)


def live(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.ask("GET", "/servers").json()["servers"]
    return found


@pytest.mark.parametrize(
    "name",
    [
        "path: dot",
        "shell: closed single quote",
        "template: jinja attribute walk",
        "json: closed text",
        "flag: a long one",
        "unicode: right to left",
    ],
)
def test_a_server_of_an_odd_user_is_that_users(service: Service, name: str) -> None:
    user = PAYLOADS[name].replace("/", "|")
    prefix = f"/user/{quote(user, safe='@~')}/" if user != ".." else "/user/dots/"
    reply = start(service, user, prefix=prefix, options={"site": "here"})
    assert reply.status_code == 200, reply.text
    view = service.wait_state(user, "ready")
    told = of_itself(view, prefix)
    homes = service.state_dir.parent / "jobs-here" / "homes" / "main"
    assert Path(told["environ"]["HOME"]).parent == homes and told["folder"] == told["environ"]["HOME"]
    assert told["environ"]["GLIDEPATH_KEY"] == server_key("main", user)
    server = server_of(view["run"])
    assert server.uid not in (0, 65534) and Path(told["folder"]).stat().st_uid == server.uid
    stop(service, user)
