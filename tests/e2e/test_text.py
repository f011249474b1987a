"""Text stays text: what servers, users and operators wrote is read as it is on pages, in events, logs and metrics.

The table is tests/payloads.json; the pages are seen in a real browser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from playwright.sync_api import BrowserContext, Dialog, Page

from browsers import chromium, login
from far import Far
from house import House
from payloads import PAYLOADS
from people import Person
from service import server_key, site
from waiting import eventually

#: In one text: a tag, an end of a script, three sorts of templates, an attribute's end.
EVIL = (
    """<img src=x onerror="document.title=666"></script><script>document.title=666</script>{{ 977 * 983 }}${9*9}"'>"""
)
#: A name that the Hub takes, of somebody whose server fails. The Hub itself lets nobody in whose name has a `=`.
EVIL_USER = "stub-says-\"'><b hidden>{{977*983}}"
LAST = ("log", "event", "header", "template", "html")
WROTE = [text for name, text in PAYLOADS.items() if not name.startswith(LAST)]
WROTE += [text for kind in LAST for name, text in PAYLOADS.items() if name.startswith(kind)]
#: Scripts of Hub and Glidepath, and no other, may be in a page.
FOREIGN = """() => [
    ...document.querySelectorAll('img[src="x"], svg[onload], [onerror], a[href^="javascript:document"], b[hidden]'),
    ...[...document.scripts].filter(one => one.textContent.trim() === 'document.title=666'),
].map(one => one.outerHTML.slice(0, 200))"""
EVENT_LINE = re.compile(r"(data: \{.*\}|event: server|id: \d+|retry: \d+|:.*|)")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +(TRACE|DEBUG|INFO|WARN|ERROR) ")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("text")
    folder.chmod(0o711)
    sites = [
        site("here", folder, preference=10, title=f"Here {EVIL}", labels={"institution": EVIL}),
        site("closed", folder, closed=f"Closed until Monday {EVIL}", preference=-10),
        site("slow", folder, process_queue_delay_s=3000, preference=-20, title=f"Slow {EVIL}"),
    ]
    presets = [{"name": "small", "title": f"Small {EVIL}", "description": f"For {EVIL}", "cores": 1}]
    with House(folder, sites=sites, more_config={"presets": presets}) as house:
        (folder / "says").write_bytes("\n".join(WROTE).encode() + b"\n")
        (folder / "says").chmod(0o644)
        yield house


@pytest.fixture
def browser(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    with chromium(tmp_path / "profile", request.node.name) as context:
        yield context


@pytest.fixture(scope="module")
def failed(house: House) -> dict[str, Any]:
    """How the service tells of a server that wrote the table and ended."""
    house.ask_for(EVIL_USER, site="here")
    assert house.person(EVIL_USER).progress()[-1].get("failed")
    end: dict[str, Any] = house.service.view(EVIL_USER)["end"]
    wrote = "\n".join(end["last_lines"])
    for mark in ("<img src=x", "</script><script>", "{{ 977 * 983 }}", "${process.env.HOME}", "ERROR all is lost"):
        assert mark in wrote, "the attack must have arrived, or nothing is shown here"
    return end


def shows(page: Page, url: str, *texts: str) -> None:
    """Opens it; these texts are read there, and nothing that others wrote is part of the page."""
    opened: list[str] = []

    def note(dialog: Dialog) -> None:
        opened.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    page.goto(url)
    for text in texts:
        page.get_by_text(text).first.wait_for(state="attached")
    page.wait_for_timeout(700)
    assert page.evaluate(FOREIGN) == [], url
    assert page.title() != "666" and not opened, url
    assert "960391" not in page.title(), url


def test_what_a_server_wrote_and_who_it_is_are_text_on_every_page(
    house: House, browser: BrowserContext, failed: dict[str, Any]
) -> None:
    page, user = browser.pages[0], quote(EVIL_USER)
    login(page, house, EVIL_USER)
    shows(page, house.url + "services/glidepath/", "</script><script>document.title=666</script>", "{{ 977 * 983 }}")
    shows(page, house.url + f"hub/spawn/{user}", "Your last server ended by itself", f"Here {EVIL}", f"Small {EVIL}")
    shows(page, house.url + "hub/home")
    shows(page, house.url + f"hub/spawn-pending/{user}")
    assert "960391" not in page.locator("body").inner_text(), "a template in a text is not run"


def test_what_operators_and_users_chose_is_text_while_it_waits(house: House, browser: BrowserContext) -> None:
    page = browser.pages[0]
    key = server_key("hub", EVIL_USER, f"named {EVIL}".replace("/", "|"))
    body = {"spawn_id": "1", "argv": ["x"], "env": {}, "prefix": "/user/x/y/", "options": {"site": "slow"}}
    assert house.service.ask("PUT", f"/servers/{key}", json=body).status_code == 200
    house.ask_for("stub-well-waits", site="slow")
    house.service.wait_state("stub-well-waits", "queued")
    login(page, house, "op")
    named = f"named {EVIL}".replace("/", "|")
    shows(page, house.url + "services/glidepath/?all=1", named, EVIL_USER, f"Slow {EVIL}")
    shows(page, house.url + "hub/spawn-pending/stub-well-waits", f"Slow {EVIL}")

    def reads_why() -> bool:
        """What the Hub's page shows is closed again by the next event."""
        page.locator("summary", has_text="Why there").first.click()
        return page.get_by_text(f"Closed until Monday {EVIL}").first.is_visible()

    eventually("the reasons are read", reads_why, 30)
    assert page.evaluate(FOREIGN) == []
    for who in (key, server_key("hub", "stub-well-waits")):
        house.service.ask("DELETE", f"/servers/{who}?now=true")


def test_a_refused_choice_is_text_where_it_is_told(house: House, browser: BrowserContext) -> None:
    """Each choice by the form, as anybody can send it; told on the page that comes back and on the waiting page."""
    page = browser.pages[0]
    user = "stub-well-chooses"
    person = house.person(user)
    person.login()
    login(page, house, user)
    for name in ("html: image", "html: closed script", "html: closed attribute", "template: jinja expression"):
        answer = person.choose(site=PAYLOADS[name], cores=PAYLOADS[name])
        assert PAYLOADS[name] not in answer.text or "<" not in PAYLOADS[name], name
        house.wait_gone(user)
        said = person.progress()[-1]
        assert said.get("failed") and ("666" in said["message"] or "977 * 983" in said["message"]), said
        assert not re.search("<(img|script|svg)", said["html_message"]), said
        shows(page, house.url + f"hub/spawn/{user}")
        shows(page, house.url + f"hub/spawn-pending/{user}")


def lines_of(url: str, headers: dict[str, str], until: str) -> list[str]:
    """Of a stream of events, up to one that says this."""
    lines: list[str] = []
    with requests.get(url, headers=headers, stream=True, timeout=30) as reply:
        for raw in reply.iter_lines(delimiter=b"\n"):
            lines.append(raw.decode())
            if until in lines[-1]:
                return lines
    raise AssertionError(f"no {until} in {lines[-3:]}")


def test_no_text_begins_an_event_of_its_own(house: House, failed: dict[str, Any]) -> None:
    person: Person = house.person(EVIL_USER)
    house.ask_for(EVIL_USER, site="here")  # once more: its progress is told while it comes to its end
    progress = f"{house.url}hub/api/users/{quote(EVIL_USER)}/server/progress"
    of_the_hub = lines_of(progress, {"Authorization": f"token {person.token}"}, '"failed": true')
    secret = {"Authorization": f"Bearer {house.service.secret_file.read_text().strip()}"}
    events = f"{house.service.facts['api']}/v1/hubs/hub/servers/{server_key('hub', EVIL_USER)}/events"
    of_the_service = lines_of(events, secret, '"ended"')
    for lines in (of_the_hub, of_the_service):
        odd = [line for line in lines if not EVENT_LINE.fullmatch(line.rstrip("\r"))]
        assert not odd, odd
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert any("X-JupyterHub-User: root" in json.dumps(one) for one in data), "the attack must have arrived"
    assert "event: server" in of_the_service and of_the_service.count("data: {}") == 0


def test_no_text_begins_a_line_of_a_log_or_a_metric_of_its_own(house: House, failed: dict[str, Any]) -> None:
    for text in PAYLOADS.values():
        house.service.ask("PUT", f"/servers/{server_key('hub', 'ada')}", json={"spawn_id": text, text: 1})
        house.service.ask("GET", f"/servers/{quote(text, safe='')}")
        house.service.ask("DELETE", f"/servers/{server_key('hub', 'ada')}", params={"run": text})
        requests.get(f"{house.service.facts['api']}/{quote(text, safe='')}", timeout=20)
    odd = [line for line in house.service.log.split("\n") if line and not LOG_LINE.match(line)]
    assert not odd, odd[:5]
    assert house.service.log.isprintable() or not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", house.service.log)
    assert not [line for line in house.hub_log.split("\n") if line.startswith("2026-01-01T00:00:00Z ERROR")]
    metrics = requests.get(f"{house.service.facts['metrics']}/metrics", timeout=20).text
    form = re.compile(r'(# .*|[a-z_]+(\{([a-z_]+="[A-Za-z0-9_/{}.+-]*",?)*\})? [-+0-9.e]+(Inf)?)')
    assert [line for line in metrics.splitlines() if not form.fullmatch(line)] == []
    assert "title=666" not in metrics and "stub-says" not in metrics, "no series bears a name that a user chose"
    routes = set(re.findall(r'route="([^"]*)"', metrics))
    assert len(routes) <= 12, f"no path of a caller's makes a series: {routes}"
