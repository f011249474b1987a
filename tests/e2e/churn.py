"""Carries out a churn: clients at the Hub's REST API, deaths at random moments, and operators who start things again.

In: a plan (`churn_plan`) and a House with its service apart. Out: a trace, answers that nobody expected, servers that
were seen alive twice. Judging the end is `churn_books`' and the test's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

import churn_books
import churn_plan
from churn_plan import Act, Blow
from house import House
from people import quote
from service import Service, server_key
from waiting import NotInTime, alive, eventually

#: After the death of Hub or proxy so much of the front may be missing: the proxy answers for the Hub, or nobody does.
FRONT_BACK_S = 45.0

#: Answers of the Hub that a client meets in its daily life, with the reason.
EXPECTED = {
    "start": {
        201: "it is up",
        202: "it is on its way",
        400: "it runs already, or is pending something else",
        404: "its user was renamed a moment ago",
        409: "Glidepath refused it in words",
        429: "more servers than the Hub's limits allow",
        424: "it failed at once: the Hub tells how its last start ended",
        500: "the Hub's log has a traceback for each, and those are judged",
    },
    "stop": {
        202: "it stops",
        204: "it is stopped",
        400: "it is being renamed",
        404: "there is none of this name yet, or its user was renamed a moment ago",
        500: "the Hub's log has a traceback for each, and those are judged",
    },
    "rename user": {200: "done", 404: "renamed by a rename that was answered late"},
    "rename server": {
        200: "done",
        400: "it is active",
        404: "there is none of this name",
        409: "Glidepath says that it lives, or the name is taken",
    },
    "cancel": {202: "it ends", 200: "it has ended", 204: "nothing to end", 404: "there is none"},
}
#: When Hub or proxy just died.
WITHOUT_FRONT = {502, 503, 504, 599}


class Trace:
    """What was done and what was seen, a JSON line each; and what must not be."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.odd: list[str] = []

    def note(self, what: str, **more: Any) -> None:
        with self._lock:
            at_s = round(time.monotonic() - self._began, 3)
            self._file.write(json.dumps({"at_s": at_s, "what": what} | more) + "\n")

    def wrong(self, what: str) -> None:
        self.note("WRONG", said=what)
        with self._lock:
            self.odd.append(what)


class World:
    """The House with everything that can be killed in it, and whoever starts it again."""

    def __init__(self, house: House, service: Service, trace: Trace, servers: int) -> None:
        self.house, self.service, self.trace = house, service, trace
        self.users = [f"stub-well-u{number}" for number in range(-(-servers // len(churn_plan.NAMES)))]
        self.servers = [(number // len(churn_plan.NAMES), number % len(churn_plan.NAMES)) for number in range(servers)]
        self.names = [list(churn_plan.NAMES) for _ in self.users]
        self.renamed: set[str] = set()
        #: Folders of sockets that lie outside the folders of jobs, all that there ever were.
        self.sockets: set[str] = set()
        self.over = threading.Event()
        self.front_died_at = -1e9
        self._front = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._timers: list[threading.Timer] = []

    def server(self, number: int) -> tuple[str, str]:
        user, name = self.servers[number]
        return self.users[user], self.names[user][name]

    def run(self, act: Callable[..., None], *args: Any) -> None:
        """As a thread; what it raises is wrong."""

        def guarded() -> None:
            try:
                act(*args)
            except Exception as error:
                self.trace.wrong(f"{act.__name__}{args}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded, name=f"{act.__name__}{args}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        """No more acts; waits for those under way, and for whatever was killed to be back."""
        self.over.set()
        for thread in self._threads:
            thread.join(150)
            if thread.is_alive():
                self.trace.wrong(f"{thread.name} did not come to an end")
        for timer in self._timers:
            timer.cancel()
        if self.house.far is not None:
            self.house.far.restore()

    @property
    def front_is_missing(self) -> bool:
        return self._front.locked() or time.monotonic() < self.front_died_at + FRONT_BACK_S

    # ---- operators ----------------------------------------------------------------------------------------------

    def keep_service(self) -> None:
        """Starts it again as soon as it is dead, however early it died."""
        last_look = False
        while True:
            child = self.service.child
            assert child is not None
            code = child.poll()
            if code is None:
                if last_look:
                    return
                last_look = self.over.wait(0.02)
                time.sleep(0.2 if last_look else 0)  # the last death may be on its way
                continue
            if code != -signal.SIGKILL:
                self.trace.wrong(f"the service ended with {code}: {self.service.log[-1500:]}")
            try:
                self.service.start()
            except NotInTime:
                self.trace.note("the service died while it started")

    def watch(self) -> None:
        """No server may be alive twice, at any moment."""
        while not self.over.wait(0.7):
            self.sockets |= churn_books.socket_folders(self.house.folder.parent)
            for one in churn_books.twice_alive(self.service.hub):
                self.trace.wrong(one)

    def wait_for_front(self) -> None:
        """Deaths are for a house that lives: Hub or proxy, once away for longer than a moment, are waited for."""
        deadline = time.monotonic() + 90
        while self._front.locked() and self.front_died_at + 3 < time.monotonic() < deadline:
            time.sleep(0.1)

    # ---- deaths -------------------------------------------------------------------------------------------------

    def strike(self, blow: Blow) -> None:
        """Kills or cuts. When there is nobody of that kind, the service dies instead, so that the count holds."""
        whom = blow.whom
        if whom in ("hub", "proxy") and not self._front.acquire(blocking=False):
            whom = "service"
        done = ""
        if whom in ("agent", "server"):
            done = self._kill_process(blow, agents=whom == "agent")
        elif whom == "hub":
            done = self._kill_hub(blow)
        elif whom == "proxy":
            done = self._kill_proxy()
        elif whom == "link":
            done = self._cut(blow)
        if not done:
            assert self.service.child is not None
            done = f"service {self.service.child.pid}"
            self.service.child.kill()
        self.trace.note("blow", number=blow.number, planned=blow.whom, done=done)

    def _kill_process(self, blow: Blow, agents: bool) -> str:
        alive_now = [each for each in churn_books.labelled(self.service.hub) if each.is_agent == agents]
        if not alive_now:
            return ""
        one = sorted(alive_now, key=lambda each: each.attempt)[int(blow.pick * len(alive_now))]
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        return f"{blow.whom} {one.pid} of {one.key} {one.attempt}"

    def _kill_hub(self, blow: Blow) -> str:
        self.front_died_at = time.monotonic()
        self.house.kill_hub()

        def back() -> None:
            try:
                time.sleep(blow.lasts_s)
                self.house.restart_hub()
                self.front_died_at = time.monotonic()
                self.trace.note("the Hub is back")
            finally:
                self._front.release()

        self.run(back)
        return "hub"

    def _kill_proxy(self) -> str:
        self.front_died_at = time.monotonic()
        try:
            pid = int((self.house.folder / "proxy.pid").read_text())
            os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            self._front.release()
            return ""

        def back() -> None:
            try:
                eventually("the proxy is dead", lambda: not alive(pid), 10)
                self.house.wait_up()
                self.front_died_at = time.monotonic()
                self.trace.note("the proxy is back")
            finally:
                self._front.release()

        self.run(back)
        return f"proxy {pid}"

    def _cut(self, blow: Blow) -> str:
        far = self.house.far
        if far is None:
            return ""
        far.cut()
        timer = threading.Timer(blow.lasts_s, far.restore)
        self._timers.append(timer)
        timer.start()
        return f"link for {blow.lasts_s} s"

    # ---- clients ------------------------------------------------------------------------------------------------

    def client(self, seed: int, number: int) -> None:
        """Does what its plan says until it is over."""
        for act in churn_plan.acts(seed, number, len(self.servers)):
            if self.over.wait(act.pause_s):
                return
            try:
                self._do(act)
            except requests.RequestException as error:
                if not self.front_is_missing:
                    self.trace.wrong(f"{act.what}: {type(error).__name__}: {error}")

    def _do(self, act: Act) -> None:
        user, server = self.server(act.server)
        self.trace.note(act.what, user=user, server=server)
        if act.what in ("start", "stop early"):
            options = {"site": act.site, "cores": 1, "memory_mb": 128}
            self._judge("start", self.house.api("POST", _path(user, server), options), user, server)
        if act.what == "stop early":
            self.over.wait(act.pause_s / 3)
        if act.what in ("stop", "stop early"):
            self._judge("stop", self.house.api("DELETE", _path(user, server)), user, server)
        elif act.what == "cancel":
            self._cancel(user, server)
        elif act.what == "ask":
            self._ask(user, server)
        elif act.what == "rename user":
            self._rename_user(act)
        elif act.what == "rename server" and server:
            new = f"{churn_plan.NAMES[self.servers[act.server][1]]}{time.monotonic_ns() % 10_000}"
            reply = self.house.api("PATCH", _path(user, server), {"name": new})
            self._judge(act.what, reply, user, server)
            if reply.status_code == 200:
                number, name = self.servers[act.server]
                self.names[number][name] = new

    def _cancel(self, user: str, server: str) -> None:
        """As Glidepath's page does it; it may be that nobody is there to hear it."""
        key = server_key(self.service.hub, user, server)
        try:
            reply = self.service.ask("DELETE", f"/servers/{key}")
        except (requests.RequestException, OSError, ValueError):
            return
        if reply.status_code not in (503,):
            self._judge("cancel", reply, user, server)

    def _ask(self, user: str, server: str) -> None:
        """A user looks at the server. Whatever answers while things die is well, but not somebody else's server."""
        path = f"user/{quote(user)}/{quote(server) + '/' if server else ''}api"
        reply = requests.get(self.house.url + path, timeout=100)
        self.trace.answers["ask", reply.status_code] += 1
        if reply.status_code == 200 and reply.headers.get("Content-Type") == "application/json":
            # The path of a named server that is not up belongs to the user's default one.
            own = {server_key(self.service.hub, user, name) for name in (server, "")}
            if reply.json()["key"] not in own:
                self.trace.wrong(f"{user}/{server} was shown the server of {reply.json()}")

    def _rename_user(self, act: Act) -> None:
        number = self.servers[act.server][0]
        old = self.users[number]
        new = f"{churn_books.person(old)}_{time.monotonic_ns() % 10_000}"
        reply = self.house.api("PATCH", f"/users/{quote(old)}", {"name": new})
        self._judge(act.what, reply, old, "")
        if reply.status_code == 200:
            self.users[number] = new
            self.renamed.add(new)

    def _judge(self, what: str, reply: requests.Response, user: str, server: str) -> None:
        status = reply.status_code
        self.trace.answers[what, status] += 1
        self.trace.note("answer", to=what, user=user, server=server, status=status)
        if status in EXPECTED[what] or (status in WITHOUT_FRONT and self.front_is_missing):
            return
        self.trace.wrong(f"{what} of {user}/{server} was answered with {status}: {_plain(reply.text)}")


def tracebacks(log: str) -> Counter[str]:
    """The tracebacks of a Hub's log, by their last line and the places of ours in them. Numbers do not count."""
    found: Counter[str] = Counter()
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if line.strip() != "Traceback (most recent call last):":
            continue
        indent = len(line) - len(line.lstrip())
        end = number + 1
        while end + 1 < len(lines) and lines[end].startswith(" " * (indent + 1)):
            end += 1
        frames = "\n".join(lines[number:end])
        ours = [":".join(place) for place in re.findall(r"jupyterhub_glidepath/(\w+\.py)\", line (\d+)", frames)]
        said = re.sub(r"\d+", "N", lines[end].strip())[:200]
        found[said + (f" [{' '.join(ours)}]" if ours else "")] += 1
    return found


def _path(user: str, server: str) -> str:
    return f"/users/{quote(user)}/servers/{quote(server)}" if server else f"/users/{quote(user)}/server"


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))[:400]
