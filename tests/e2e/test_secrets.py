"""Where secrets are during a server's whole life, and that they are nowhere else.

A scanner looks as root and as an account that has nothing to do with it at every process, file and log; the browser
tells its addresses and what it keeps. What may be where is written down in `ALLOWED`; everything else is a leak.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import BrowserContext, Page, Request, WebSocket

import places
import scan
from browsers import chromium, login, open_notebook
from far import Far
from house import House
from service import site
from waiting import Process, agent_of, eventually, processes_of, server_of

#: Of no account's concern: `nobody`.
STRANGER = 65534
BEGAN = time.time()
#: Where any account may write. A program that keeps a secret beside its own folder would keep it here.
SHARED = ["/tmp", "/var/tmp", "/run", "/dev/shm"]
#: Stands in a request and must be found in the service's log: what shows that the log was looked at.
SEEN = f"seen-{secrets.token_hex(6)}"
DUMP = """async () => {
    const kept = {cookie: document.cookie, local: {...localStorage}, session: {...sessionStorage}, databases: []};
    for (const {name} of await indexedDB.databases()) {
        const database = await new Promise((done, failed) => {
            const opening = indexedDB.open(name);
            opening.onsuccess = () => done(opening.result);
            opening.onerror = failed;
        });
        for (const store of database.objectStoreNames) {
            const rows = await new Promise((done, failed) => {
                const asked = database.transaction(store).objectStore(store).getAll();
                asked.onsuccess = () => done(asked.result);
                asked.onerror = failed;
            });
            kept.databases.push([name, store, JSON.stringify(rows)]);
        }
        database.close();
    }
    return JSON.stringify(kept);
}"""


@dataclass
class Told:
    """What a browser let out of itself, by place."""

    context: BrowserContext
    said: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.on("request", self._request)
        self.context.on("page", lambda page: page.on("websocket", self._socket))
        self.page.on("websocket", self._socket)

    @property
    def page(self) -> Page:
        return self.context.pages[0]

    def _request(self, request: Request) -> None:
        self.said.append(("url", request.url))
        self.said.append(("referer", request.headers.get("referer", "")))

    def _socket(self, socket: WebSocket) -> None:
        self.said.append(("url", socket.url))

    def everything(self) -> list[tuple[str, str]]:
        """With its history and what scripts of this page could read."""
        history = self.context.new_cdp_session(self.page).send("Page.getNavigationHistory")
        kept = [("history", entry["url"]) for entry in history["entries"]]
        return self.said + kept + [("storage", self.page.evaluate(DUMP))]

    def found(self, wanted: dict[str, str]) -> set[tuple[str, str]]:
        return {
            (name, place)
            for name, secret in wanted.items()
            for place, text in self.everything()
            if any(one in text.encode() for one in scan.spellings(secret))
        }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o711)
    far = Far()
    far.build()
    level = "info,glidepath=trace,glidepath_spawner=trace,glidepath_tunnel=trace,glidepath_backends=trace"
    sites = [site("here", folder), site("late", folder, far, process_queue_delay_s=4, preference=-10)]
    try:
        with House(folder, far=far, sites=sites, more_config={"log": {"format": "json", "level": level}}) as house:
            yield house
    finally:
        far.remove()


@pytest.fixture
def browser(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Told]:
    with chromium(tmp_path / "profile", request.node.name) as context:
        yield Told(context)


@dataclass(frozen=True)
class Scan:
    """What an account found on this machine: secret and place."""

    found: set[tuple[str, str]]
    seen: dict[str, int]
    names: list[str]


def scanned(house: House, wanted: dict[str, str], account: int, known: list[str]) -> Scan:
    """`known` are files of which that account has heard."""
    become = ["setpriv", f"--reuid={account}", f"--regid={account}", "--clear-groups", "--"] if account else []
    folders = [str(house.folder), str(house.service.state_dir)]
    ours = Path(*house.folder.parts[:3])  # what the tests made, these and others
    told: dict[str, Any] = {"secrets": wanted, "folders": folders, "paths": known}
    told |= {"shared": SHARED, "but": str(ours), "since": BEGAN}
    done = subprocess.run(
        [*become, places.stub_python(), "-ISc", Path(scan.__file__).read_text()],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd="/",
    )
    answer = json.loads(done.stdout)
    return Scan({(name, place) for name, place in answer["found"]}, answer["seen"], answer["names"])


def environ(pid: int) -> dict[str, str]:
    parts = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(part.split("=", 1) for part in parts if "=" in part)


def page_service(house: House) -> int:
    """The Hub's service for Glidepath's page: its child."""
    assert house.process is not None
    hub = psutil.Process(house.process.pid)

    def look() -> int | None:
        children = (child for child in hub.children() if "jupyterhub_glidepath.service" in child.cmdline())
        return next((child.pid for child in children), None)

    return eventually("the page's process", look, 10)


class Life:
    """One house's secrets, and the places in which each may be."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.page = page_service(house)
        self.secrets = {
            "the Hub's secret": house.service.secret_file.read_text().strip(),
            "a secret of the servers' environment": house.settings["server_secret"],
            "the page's token": environ(self.page)["JUPYTERHUB_API_TOKEN"],
        }
        #: Beginnings of places, by secret. The settings are these tests' own way to tell the Hub its config.
        self.allowed: dict[str, list[str]] = {
            "the Hub's secret": [f"file {house.service.secret_file}"],
            "a secret of the servers' environment": [f"file {house.folder}/settings.json"],
            "the page's token": [f"environ {self.page} "],
        }

    def learn(self, name: str, secret: str, *allowed: str) -> None:
        assert len(secret) >= 16, f"{name} is too short to be looked for"
        self.secrets[name] = secret
        self.allowed[name] = list(allowed)

    def of_server(self, run: str) -> str:
        """A server's own token is in its environment and that of what it starts; so is what the Hub's config adds."""
        server, agent = server_of(run), agent_of(run)
        token = environ(server.pid)["JUPYTERHUB_API_TOKEN"]
        # Jupyter notes it in its user's home, for its own tools.
        runtime = Path(environ(server.pid)["HOME"]) / ".local/share/jupyter/runtime/jpserver-"
        self.learn(f"the token of {run}", token, f"file {runtime}")
        for process in processes_of(run):
            if process.pid != agent.pid:
                self.allow_environment(process, f"the token of {run}")
                self.allow_environment(process, "a secret of the servers' environment")
        return token

    def allow_environment(self, process: Process, name: str) -> None:
        self.allowed[name].append(f"environ {process.pid} uid={process.uid} ")

    def nothing_leaks(self, moment: str) -> None:
        by_root = scanned(self.house, self.secrets, 0, [])
        seen = [by_root.seen.get(kind, 0) for kind in ("argv", "environ", "name", "file")]
        assert min(seen) > 10, f"little was seen: {by_root.seen}"
        leaks = {
            (name, place)
            for name, place in by_root.found
            if not any(place.startswith(allowed) for allowed in self.allowed[name])
        }
        assert not leaks, f"{moment}: {leaks}"
        by_stranger = scanned(self.house, self.secrets, STRANGER, by_root.names)
        assert by_stranger.seen["argv"] > 10, f"little was seen: {by_stranger.seen}"
        assert not by_stranger.found, f"{moment}, by another account: {by_stranger.found}"


def test_no_secret_is_anywhere_but_in_its_place_in_a_servers_whole_life(house: House, browser: Told) -> None:
    life = Life(house)
    page = browser.page
    house.person("ada")
    login(page, house, "ada")

    # It waits: its ticket is in its own folder, for its account.
    house.ask_for("ada", site="late")
    view = house.service.wait_state("ada", "queued")
    run = view["run"]
    job = house.folder / "jobs-late" / "jobs" / f"{run}-1"
    dial = job / "own" / "dial.json"
    ticket = json.loads(dial.read_text())["ticket"]
    life.learn("the ticket", ticket.split(".")[2], f"file {dial}")
    assert (dial.stat().st_mode & 0o777, dial.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    life.nothing_leaks("while it waits")

    # It runs, and its user works.
    house.wait_ready("ada")
    life.allowed["the ticket"] = []
    token = life.of_server(run)
    page.goto(house.url + "user/ada/lab?reset")
    page.wait_for_selector("#jp-main-dock-panel", timeout=60_000)
    open_notebook(page)
    page.keyboard.type("print('6 x 7 =', 6 * 7)")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output", has_text="6 x 7 = 42").first.wait_for(timeout=60_000)
    cookies = [cookie for cookie in browser.context.cookies() if len(cookie["value"]) >= 16]
    assert {"jupyterhub-session-id", "jupyterhub-user-ada"} <= {cookie["name"] for cookie in cookies}, cookies
    readable = {cookie["name"] for cookie in cookies if not cookie.get("httpOnly")}
    assert readable <= {"_xsrf"}, f"scripts can read {readable}"
    for number, cookie in enumerate(cookies):
        # No rights by themselves. The Hub's own pages and Lab put the one into addresses; the Hub and its servers log
        # the other, which tells the tokens of one login from those of another.
        if cookie["name"] not in ("_xsrf", "jupyterhub-session-id"):
            life.learn(f"cookie {number} {cookie['name']}", cookie["value"])
    life.of_server(run)  # its kernel too
    life.nothing_leaks("while it runs")
    assert browser.found(life.secrets) == set(), "addresses, history and what scripts of the page can read"

    # Somebody is refused, and somebody's server fails, both with secrets on their way.
    house.ask_for("stub-well-refused", site=SEEN)
    house.ask_for("stub-exits-1", site="here")
    assert house.person("stub-exits-1").progress()[-1].get("failed")
    life.nothing_leaks("after a failure")
    assert SEEN in house.service.log, "the log holds what is no secret, so it was looked at"

    page.goto(house.url + "services/glidepath/")
    page.get_by_text("The next building").first.wait_for()
    assert browser.found(life.secrets) == set()
    house.stopped("ada")
    for name in life.allowed:
        if name.startswith("the token of"):
            life.allowed[name] = []
        elif "environment" in name:
            life.allowed[name] = [place for place in life.allowed[name] if place.startswith("file ")]
    life.nothing_leaks("when it is over")
    told = [f"jobs of {token[:4]}…: {path}" for path in job.parent.rglob("*") if "PRIVATE KEY" in text_of(path)]
    assert not told, "a key of an agent lies on a disk"


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() and not path.is_symlink() else ""


def test_the_state_of_service_and_jobs_is_closed_to_others(house: House) -> None:
    view = house.started("stub-well-modes", site="here")
    job = house.folder / "jobs-here" / "jobs" / f"{view['run']}-1"
    account = server_of(view["run"]).uid
    modes = {
        house.service.state_dir: (0, 0o700),
        house.service.secret_file: (0, 0o600),
        house.service.state_dir / "glidepath.db": (0, 0o600),
        house.service.state_dir / "keys": (0, 0o700),
        house.service.state_dir / "keys" / "seal.key": (0, 0o600),
        job / "job.json": (0, 0o600),
        job / "agent.log": (0, 0o600),
        job / "own": (account, 0o700),
        house.folder / "jobs-here" / "homes" / "hub" / "stub-well-modes": (account, 0o700),
    }
    found = {path: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in modes}
    assert found == modes
    house.stopped("stub-well-modes")


def test_the_scanner_finds_what_lies_where_it_looks(house: House, browser: Told) -> None:
    """Without this the tests above could not fail."""
    marks = {
        place: secrets.token_hex(16)
        for place in ("argv", "environ", "log", "base64", "name", "link", "database", "url", "referer", "history")
    }
    more = ("local", "session", "indexed", "cookie", "open file", "shared")
    marks |= {place: secrets.token_hex(16) for place in more}
    folder = house.folder / "jobs-here" / "planted"
    folder.mkdir(mode=0o700)
    (folder / "log").write_text(f"INFO a line with {marks['log']} in it\n")
    header = base64.b64encode(f"user:{marks['base64']}".encode()).decode()
    (folder / "header").write_text(f"Authorization: Basic {header}\n")
    (folder / f"job-{marks['name']}").touch()
    (folder / "link").symlink_to(marks["link"])
    with sqlite3.connect(folder / "planted.db") as database:
        database.execute("CREATE TABLE orders (order_text TEXT)")
        database.execute("INSERT INTO orders VALUES (?)", (marks["database"],))
    database.close()
    open_file = house.folder / "open.txt"
    open_file.write_text(marks["open file"])
    open_file.chmod(0o644)
    shared = Path(SHARED[-1]) / f"planted-{os.getpid()}"
    shared.write_text(marks["shared"])
    shared.chmod(0o600)
    sleeper = [sys.executable, "-c", "import time; time.sleep(300)", marks["argv"]]
    process = subprocess.Popen(sleeper, env={"MARK": marks["environ"]})
    try:
        by_root = scanned(house, marks, 0, [])
        by_stranger = scanned(house, marks, STRANGER, by_root.names)
    finally:
        process.kill()
        process.wait()
        subprocess.run(["rm", "-r", str(folder), str(open_file), str(shared)], check=True)
    kinds = {"argv": "argv", "environ": "environ", "name": "name", "link": "link", "shared": "shared"}
    on_disk = ("log", "base64", "name", "link", "database", "argv", "environ", "open file", "shared")
    assert {name: {place.split(" ")[0] for found, place in by_root.found if found == name} for name in on_disk} == {
        name: {kinds.get(name, "file")} for name in on_disk
    }
    assert {name for name, _ in by_stranger.found} == {"argv", "open file"}, (
        "another account sees what is open, and no more"
    )

    page = browser.page
    page.goto(f"{house.url}hub/login?next=&{marks['url']}")
    page.goto(f"{house.url}hub/login?{marks['referer']}")
    page.click("a[href] >> nth=0")
    page.wait_for_load_state()
    page.evaluate(f"history.pushState(null, '', '?{marks['history']}')")
    page.evaluate(f"localStorage.setItem('a', '{marks['local']}'); sessionStorage.setItem('a', '{marks['session']}')")
    page.evaluate(f"document.cookie = 'a={marks['cookie']}'")
    page.evaluate(
        f"""() => new Promise(done => {{
            const opening = indexedDB.open('planted', 1);
            opening.onupgradeneeded = () => opening.result.createObjectStore('s').put('{marks["indexed"]}', 'k');
            opening.onsuccess = () => {{ opening.result.close(); done(); }};
        }})"""
    )
    expected = {("url", "url"), ("referer", "referer"), ("history", "history")}
    expected |= {(name, "storage") for name in ("local", "session", "indexed", "cookie")}
    assert expected <= browser.found(marks)
