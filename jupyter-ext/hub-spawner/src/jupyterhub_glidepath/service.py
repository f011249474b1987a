"""The Hub service ``/services/glidepath/``: my servers, where and why, cancel; and the live form's answers.

Runs as a process of its own, started by the Hub: ``python -m jupyterhub_glidepath.service``. In: logged-in users of
the Hub (OAuth). Out: pages, and calls of Glidepath's service with the Hub's secret, which is read from its
0600 file at every call and never shown. Whoever is asked for is checked here: users reach their own servers,
operators all. All text is escaped by the templates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jinja2
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from jupyterhub.utils import url_path_join
from tornado import web

from jupyterhub_glidepath.client import Client, Refused, Unreachable, read_secret
from jupyterhub_glidepath.configure import OPERATE_SCOPE
from jupyterhub_glidepath.keys import ServerKey
from jupyterhub_glidepath.progress import in_words, sentence
from jupyterhub_glidepath.refusal import clean, sentence_case
from jupyterhub_glidepath.waiting import is_set_within
from jupyterhub_glidepath.wire import NearEnd, ServerView

#: The page looks for its Hub so often; without one it has no reason to be.
PARENT_EVERY_S = 2.0
#: The most servers that one page shows.
SHOWN_MAX = 500
BODY_MAX_BYTES = 64 * 1024

CONTENT_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Where:
    """Which service the Hub uses; read from the file that the Hub writes, and from the service's attach file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, str]:
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Unreachable("the Hub has not said yet which service it uses") from error
        return {name: str(value) for name, value in raw.items()}

    async def address(self) -> str:
        where = self.read()
        if where["service_url"]:
            return where["service_url"]
        try:
            return str(json.loads((Path(where["state_dir"]) / "service.json").read_text(encoding="utf-8"))["api"])
        except (OSError, ValueError, KeyError) as error:
            raise Unreachable("the embedded service is not up") from error

    def secret(self) -> str:
        return read_secret(Path(self.read()["secret_file"]))


class Silence:
    """For how long the service has not answered this page, over all who look at it."""

    def __init__(self) -> None:
        self._since: float | None = None

    def ends(self) -> None:
        self._since = None

    def goes_on(self) -> str:
        """It has not answered again; for how long it has not, in words."""
        self._since = self._since or time.monotonic()
        return in_words(time.monotonic() - self._since)


class Handler(HubOAuthenticated, web.RequestHandler):
    """What all handlers share: who asks, and how to answer."""

    def initialize(
        self, where: Where, templates: jinja2.Environment, clients: dict[str, Client], silence: Silence
    ) -> None:
        self.where = where
        self.templates = templates
        self.clients = clients
        self.silence = silence

    def set_default_headers(self) -> None:
        self.nonce = secrets.token_urlsafe(16)
        self.set_header("Content-Security-Policy", CONTENT_POLICY.format(nonce=self.nonce))
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")

    @property
    def service(self) -> tuple[str, Client]:
        """The hub's name and the client that speaks for it."""
        hub = self.where.read()["hub_name"]
        if hub not in self.clients:
            self.clients[hub] = Client(hub, self.where.address, self.where.secret)
        return hub, self.clients[hub]

    @property
    def is_operator(self) -> bool:
        return bool(self.current_user.get("admin")) or OPERATE_SCOPE in self.current_user.get("scopes", [])

    def may_touch(self, key: str) -> bool:
        """Users reach their own servers, of this Hub; operators all of this Hub."""
        try:
            parsed, hub = ServerKey.parse(key), self.where.read()["hub_name"]
        except (ValueError, Unreachable):
            return False
        return parsed.hub == hub and (self.is_operator or parsed.user == self.current_user["name"])

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        said = error.log_message if isinstance(error, web.HTTPError) and error.log_message else self._reason
        self.render_page("problem.html", title="Glidepath", said=clean(str(said), 400))

    def render_page(self, name: str, **values: Any) -> None:
        user = self.current_user if hasattr(self, "_hub_auth_user_cache") else None
        self.finish(
            self.templates.get_template(name).render(
                nonce=self.nonce,
                base=self.hub_auth.base_url,
                hub_home=self.hub_auth.hub_host + url_path_join(self.hub_auth.hub_prefix, "home"),
                user=user,
                **values,
            )
        )

    async def shown(self) -> dict[str, Any]:
        """What the page shows: the servers that this user may see, or why none can be shown."""
        name = self.current_user["name"]
        everybody = self.is_operator and self.get_argument("all", "") == "1"
        shown = {"operator": self.is_operator, "everybody": everybody, "silent_for": "", "left_out": 0}
        try:
            servers = await self.service[1].servers()
        except (Unreachable, Refused) as error:
            logging.getLogger("glidepath").warning("the page shows no servers: %s", error)
            return shown | {"servers": [], "silent_for": self.silence.goes_on()}
        self.silence.ends()
        mine = [view for view in servers if view.state != "none" and (everybody or view.user == name)]
        mine.sort(key=lambda view: (view.over, _reversed(view.since), view.user, view.server))
        cards = [self.card(view) for view in mine[:SHOWN_MAX]]
        return shown | {"servers": cards, "left_out": max(0, len(mine) - SHOWN_MAX)}

    def server_link(self, view: ServerView) -> str:
        """Where the server is; with subdomains the Hub knows the way."""
        host, prefix = self.hub_auth.hub_host, self.hub_auth.hub_prefix
        base = f"{host}{prefix}" if host else prefix.removesuffix("hub/")
        names = (quote(name, safe="@~") for name in (view.user, view.server) if name)
        return str(url_path_join(base, "user", *names, "/"))

    def card(self, view: ServerView) -> dict[str, Any]:
        """One server as the template shows it; still to be escaped there."""
        end = view.end if view.over else None
        return {
            "view": view,
            "own": view.user == self.current_user["name"],
            "title": clean(view.server, 255) or "Default server",
            "sentence": sentence(view),
            "state": _STATE_WORDS.get(view.state, view.state),
            "site": clean(view.site_title(), 100),
            "since": _ago(view.since),
            "requested": _ago(view.requested_at),
            "memory": f"{view.memory_bytes / 2**20:,.0f} MiB" if view.memory_bytes else "",
            "cpu": in_words(view.cpu_s) if view.cpu_s else "",
            "ends": _ends(view),
            "limits": clean(view.limits, 400),
            "near": [words for words in map(_near, view.near_ends) if words],
            "link": self.server_link(view),
            "end": end,
            "end_message": sentence_case(clean(end.message, 400)) if end else "",
            "how": _how(view) if end else "",
            "last_lines": [clean(line, 400) for line in end.last_lines[-20:]] if end else [],
            "verdicts": [
                {"title": clean(one.title, 100), "sentence": clean(one.sentence, 400), "one": one}
                for one in view.verdicts[:50]
            ],
        }


class Servers(Handler):
    """``GET``: the page of servers, whole."""

    @web.authenticated
    async def get(self) -> None:
        told = _TOLD.get(self.get_argument("told", ""), "")
        self.render_page(
            "servers.html",
            title="My servers",
            told=told,
            xsrf=self.xsrf_token.decode("ascii"),
            **await self.shown(),
        )


class ServerList(Handler):
    """``GET``: only the list, for a page that is open.

    It holds the token that cancels, so it wants that token: another page of the same origin, such as one that a
    user's server made, cannot fetch it.
    """

    def get_login_url(self) -> str:
        raise web.HTTPError(403, "Log in again.")

    @web.authenticated
    async def get(self) -> None:
        self.render_page("list.html", told="", xsrf=self.xsrf_token.decode("ascii"), **await self.shown())


class Cancel(Handler):
    """``POST``: ends exactly the named run of the named server."""

    @web.authenticated
    async def post(self) -> None:
        key, run = self.get_body_argument("key"), self.get_body_argument("run")
        if not self.may_touch(key):
            raise web.HTTPError(404, "There is no such server.")
        try:
            await self.service[1].stop(key, run=run, wait_s=5)
            told = "cancelled"
        except Refused as refused:
            logging.getLogger("glidepath").warning("cancelling %s: %s", key, refused)
            told = "refused"
        except Unreachable as error:
            logging.getLogger("glidepath").warning("cancelling %s: %s", key, error)
            told = "unreachable"
        everybody = {"all": "1"} if self.get_body_argument("all", "") == "1" else {}
        self.redirect(f"{self.hub_auth.base_url}?{urlencode({'told': told, **everybody})}")


class Placement(Handler):
    """``POST``: the sites' verdicts on a choice, for the form; ``GET``: only logs in, so that the form may ask.

    It changes nothing, so instead of a token of this page, which the Hub's form cannot have, it wants a JSON body from
    the same origin: no other site's page can send that.
    """

    def check_xsrf_cookie(self) -> None:
        _only_from_here(self)

    def get_login_url(self) -> str:
        if self.request.method != "GET":
            raise web.HTTPError(403, "Log in first.")
        return str(super().get_login_url())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.finish({"code": "refused", "status": status_code, "title": self._reason})

    @web.authenticated
    async def get(self) -> None:
        self.set_status(204)

    @web.authenticated
    async def post(self) -> None:
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise web.HTTPError(415, "The body must be JSON.")
        try:
            asked = json.loads(self.request.body)
            options, server = asked.get("options") or {}, asked.get("server") or ""
            user = asked.get("user") or self.current_user["name"]
        except (ValueError, AttributeError):
            raise web.HTTPError(400, "The body must be a JSON object.") from None
        if user != self.current_user["name"] and not self.is_operator:
            raise web.HTTPError(403, "Only for yourself.")
        groups = self.current_user.get("groups") or [] if user == self.current_user["name"] else []
        who = {"user": user, "server": server, "groups": groups, "options": options}
        try:
            self.finish((await self.service[1].placement(who)).raw)
        except Refused as refused:
            raise web.HTTPError(400, "The choice was refused.") from refused
        except Unreachable:
            self.set_status(503)
            self.finish({"code": "unreachable", "status": 503, "title": "Glidepath does not answer"})


class Callback(HubOAuthCallbackHandler):
    """Where the Hub sends users back after login."""

    async def get(self) -> None:
        """A page and the form's script may log in at the same moment. One browser keeps one's cookie alone, and the
        other would be refused: it asks again for what it came for."""
        state = self.get_argument("state", "")
        kept = self.get_secure_cookie(self.hub_auth.get_state_cookie_name(state))
        if kept and kept.decode("ascii", "replace") != state:
            self.redirect(self.hub_auth.get_next_url(state))
            return
        await super().get()


def make_app(prefix: str, where: Where) -> web.Application:
    """All routes on one page."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jupyterhub_glidepath"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shared: dict[str, Any] = {"where": where, "templates": templates, "clients": {}, "silence": Silence()}
    return web.Application(
        [
            (prefix.rstrip("/"), web.RedirectHandler, {"url": prefix}),
            (prefix, Servers, shared),
            (prefix + "list", ServerList, shared),
            (prefix + "cancel", Cancel, shared),
            (prefix + "placement", Placement, shared),
            (prefix + "oauth_callback", Callback),
        ],
        # Sessions of the page end with its process: users are logged in again without noticing.
        cookie_secret=secrets.token_bytes(32),
        xsrf_cookies=True,
        log_function=lambda handler: None,
        clients=shared["clients"],
    )


def _only_from_here(handler: web.RequestHandler) -> None:
    """Only pages of this origin; a browser that does not say is judged by the Origin header."""
    headers = handler.request.headers
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site not in (None, "same-origin", "none"):
        raise web.HTTPError(403, "Only from this Hub's pages.")
    if site is None and origin is not None and urlsplit(origin).netloc != handler.request.host:
        raise web.HTTPError(403, "Only from this Hub's pages.")


def _how(view: ServerView) -> str:
    end = view.end
    if end is None:
        return ""
    if end.signal is not None:
        try:
            return f"signal {end.signal} ({signal.Signals(end.signal).name})"
        except ValueError:
            return f"signal {end.signal}"
    return f"exit code {end.exit_code}" if end.exit_code is not None else ""


def _ago(text: str | None) -> str:
    moment = _moment(text)
    if moment is None:
        return ""
    return f"{in_words((datetime.now(timezone.utc) - moment).total_seconds())} ago"


def _ends(view: ServerView) -> str:
    """How long its walltime still is, and how long it was from the start."""
    left = _left(view.lives_until)
    if view.over or left is None:
        return ""
    whole = f", of {in_words(view.walltime_s).removeprefix('about ')}" if view.walltime_s else ""
    return f"in {in_words(left)}{whole}"


def _near(end: NearEnd) -> str:
    """An end that is near, with its reason."""
    left = _left(end.ends_at)
    return "" if left is None else f"It ends in {in_words(left)}: {_NEAR_WORDS.get(end.reason, end.reason)}."


def _left(text: str | None) -> float | None:
    moment = _moment(text)
    return None if moment is None else (moment - datetime.now(timezone.utc)).total_seconds()


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _reversed(text: str | None) -> float:
    moment = _moment(text)
    return -moment.timestamp() if moment else 0.0


_STATE_WORDS = {
    "requested": "asked for",
    "placed": "placed",
    "submitting": "handing over",
    "queued": "queued",
    "dialling": "calling home",
    "starting": "starting",
    "ready": "ready",
    "stopping": "stopping",
    "ended": "ended",
}

_NEAR_WORDS = {
    "walltime": "its time is over then, save your work",
    "idle": "nothing goes on in it, run or save something to keep it",
    "unattended": "a kernel computes with nobody connected, open it to keep it",
}

_TOLD = {
    "cancelled": "The server was told to end.",
    "refused": "That server could not be cancelled: it may have ended already.",
    "unreachable": "Glidepath does not answer at the moment. Try again shortly.",
}


async def _serve(where_file: Path, hub_pid: int) -> None:
    url = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    app = make_app(prefix, Where(where_file))
    server = app.listen(url.port or 80, url.hostname or "127.0.0.1", max_body_size=BODY_MAX_BYTES)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    while os.getppid() == hub_pid and not await is_set_within(stop, PARENT_EVERY_S):
        pass
    if os.getppid() != hub_pid:  # the Hub was killed, and with it whoever would tidy up
        shutil.rmtree(where_file.parent, ignore_errors=True)
    server.stop()
    for client in app.settings["clients"].values():
        await client.close()


def main() -> None:
    """The process that the Hub starts."""
    parser = argparse.ArgumentParser(description="Glidepath's page of servers; started by the Hub.")
    parser.add_argument("--where", type=Path, required=True, help="file that names the service, written by the Hub")
    parser.add_argument("--hub", type=int, required=True, help="process id of that Hub; the page ends with it")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.where, arguments.hub))


if __name__ == "__main__":
    main()
