"""The Hub's side of Glidepath: turns the Hub's calls into calls of the service, and decides nothing.

In: what JupyterHub asks of a spawner. Out: starts, stops, states, words. Rules on resources, sites, deadlines and
retries live in the service. A server's identity is derived from hub, user and server name, never stored, so that a
Hub that was killed finds everything again; a service that does not answer ends nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.orm import APIToken
from jupyterhub.spawner import Spawner
from jupyterhub.utils import url_path_join
from traitlets import default

from jupyterhub_glidepath import progress
from jupyterhub_glidepath.client import Refused, Unreachable
from jupyterhub_glidepath.connection import Connection, Where, connect, connected
from jupyterhub_glidepath.embedded import HubFacts, secret_file
from jupyterhub_glidepath.form import last_end, options_from_form, static_form
from jupyterhub_glidepath.keys import ServerKey
from jupyterhub_glidepath.refusal import leave_uncounted, refusal, refusal_of_end, refusal_of_start
from jupyterhub_glidepath.settings import GlidepathSettings
from jupyterhub_glidepath.waiting import within
from jupyterhub_glidepath.wire import ServerView, Started

#: At start-up a first look at the service may take so long before "unknown" is said.
FIRST_LOOK_S = 5.0
#: How often a wait looks again by itself while the event stream is not heard.
LOOK_AGAIN_S = 20.0
#: The same while it is: a thousand that wait in a queue ask nothing that the stream tells.
LOOK_SELDOM_S = 300.0
#: Between two tries of a call that found nobody: the first, and the most.
RETRY_FIRST_S = 0.25
RETRY_MOST_S = 5.0
#: The Hub's last look at a server that has ended: no need to wait for it.
PROBE_ENDED_S = 1
#: A page may wait so long for the form, also of a service that is being started again; then it shows a plain one.
FORM_PATIENCE_S = 5.0
#: At most so many probes of relays at once, over all spawners of this process.
PROBES_AT_ONCE = 32
#: The Hub gives a start that it interrupts one second to end; whatever it does then, it has begun after this time.
INTERRUPTED_FOR_S = 3.0
#: So long one DELETE waits in the service for the end.
STOP_WAIT_S = 20

_probes: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


class GlidepathSpawner(GlidepathSettings, Spawner):
    """Starts servers through Glidepath: at the site with room, kept through crashes and cut links."""

    #: For the Hub's database: information, nothing is derived from it.
    _run = ""
    #: The user's name when this run was asked for: the service knows the run by it, whatever the user is called since.
    #: Empty while there is none.
    _asked_as = ""
    #: Calls of start() that are under way.
    _starting = False
    #: The last start() did not come to a run: whatever lives under the key is not its own, and must not be stopped.
    _gave_up = False
    #: The service was asked for a start and has not answered: there may be a run, now or in a moment.
    _unsure = False
    #: The request for it that is under way.
    _asking: asyncio.Future[Started] | None = None
    #: What the operator set, while the Hub need not wait for a server that has ended.
    _http_timeout_set = 0
    #: OAuth client as the Hub made it for the spawn under way.
    _oauth_client_as_made: tuple[list[str], str] | None = None
    _telling_end: asyncio.Task[None] | None = None
    _ending_interrupted: asyncio.Task[None] | None = None

    # ---- what the Hub calls -------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Starts the server, or finds it alive; returns the relay's URL when the server answers."""
        leave_uncounted(self)
        self._starting, self._gave_up, self._unsure = True, True, False
        self._asked_as, self._oauth_client_as_made = self.user.name, None
        self._keep_name()
        if self._http_timeout_set:
            self.http_timeout, self._http_timeout_set = self._http_timeout_set, 0
        try:
            self._refuse_internal_ssl()
            return await within(self._start(), max(1.0, self.start_timeout - 2.0))
        except asyncio.TimeoutError:
            raise refusal(
                f"The server was not ready after {progress.in_words(self.start_timeout)} and was cancelled.",
                reason="timeout",
            ) from None
        except asyncio.CancelledError:
            self._ending_interrupted = asyncio.create_task(self._end_interrupted(), name=f"glidepath {self._log_name}")
            raise
        finally:
            self._starting = False

    async def poll(self) -> int | None:
        """``None`` while the server lives or nobody can tell; else its exit status."""
        try:
            if self._starting or self._unsure:
                return None
            if self._gave_up:
                return 0
            connection = self.connection()
            if not await connection.feed.synced(FIRST_LOOK_S):
                return None
            view = connection.feed.view(self._key)
            if view is None:
                view = connection.feed.take(await connection.client.view(self._key))
            return _status(view) if view.over else None
        except (Unreachable, Refused) as error:
            self.log.warning("%s keeps its last known state: %s", self._log_name, error)
            return None

    async def stop(self, now: bool = False) -> None:
        """Ends the server and waits until it is gone."""
        connection = self.connection()
        connection.feed.call_at_end(self._key, None)
        if self._asking is not None:  # what it starts must be there to be stopped
            await asyncio.wait({self._asking})
        deadline, wait_s = time.monotonic() + self.stop_patience, RETRY_FIRST_S
        while True:
            try:
                view = await connection.client.stop(self._key, now=now, wait_s=STOP_WAIT_S)
                wait_s = RETRY_FIRST_S
                self._unsure = False
                if view is None or connection.feed.take(view).over:
                    return
            except (Unreachable, Refused) as error:  # the Hub forgets a server whose stop raises
                if time.monotonic() > deadline:
                    raise
                self.log.warning("Stopping %s: %s; trying again", self._log_name, error)
                wait_s = min(wait_s * 2, RETRY_MOST_S)
            await asyncio.sleep(wait_s)

    async def get_url(self) -> str:
        """The relay's URL, once the server answered through it or has ended; never raises.

        The Hub asks after a restart, and stops the server when it does not answer soon after. So this waits, however
        long it takes, through queue, cut link and a service that is away; the service bounds it.
        """
        wait_s = RETRY_FIRST_S
        while True:
            try:
                url = await self._url_that_answers()
                if url is not None:
                    return url
                wait_s = RETRY_FIRST_S
            except Exception as error:
                self.log.warning("Looking for %s: %s; trying again", self._log_name, error)
                wait_s = min(wait_s * 2, RETRY_MOST_S)
            await asyncio.sleep(wait_s)

    async def progress(self) -> AsyncGenerator[dict[str, Any], None]:
        """What goes on, in the user's words, until the server is ready or has ended. Never raises."""
        try:
            async for event in self._progress():
                yield event
        except Exception:
            self.log.exception("Progress of %s failed", self._log_name)
            yield {"message": "The server is on its way"}

    async def get_options_form(self) -> str:
        """The service's form; a plain one when it cannot be had."""
        if self.options_form:
            return str(await super().get_options_form())
        try:
            return await self._service_form()
        except (Unreachable, Refused) as error:
            self.log.warning("The options form for %s is a plain one: %s", self._log_name, error)
            return static_form("The list of sites cannot be shown at the moment.")

    @default("options_from_form")
    def _options_from_form_default(self) -> Callable[..., dict[str, str]]:
        return options_from_form

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Callable[..., None]:
        # The service checks and applies them: here they only must not be taken for forgotten ones.
        return lambda _spawner, _options: None

    async def poll_and_notify(self) -> int | None:
        """As the Hub's own, which forgets a server whose end it meets before it has anybody to tell."""
        if not self._callbacks:
            return None
        status: int | None = await super().poll_and_notify()
        return status

    def add_poll_callback(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Somebody wants to know of the end: have the event stream tell it at once."""
        super().add_poll_callback(callback, *args, **kwargs)
        self._watch_end()

    def start_polling(self) -> None:
        """The server is up: the Hub calls this when it has done what it does with a start's token."""
        self._restore_oauth_client()
        super().start_polling()
        self._watch_end()

    def stop_polling(self) -> None:
        super().stop_polling()
        connection = connected(self._where())
        if connection is not None:
            connection.feed.call_at_end(self._key, None)

    def get_state(self) -> dict[str, Any]:
        """For the eye, but for the user's name: everything is derived from the key, and a user may be renamed while a
        server lives. Any page may ask, at any time."""
        state: dict[str, Any] = super().get_state()
        if self._asked_as:
            state["user"] = self._asked_as
        if self._run:
            state |= {"run": self._run, "user": self._asked_as or self.user.name}
        return state

    def _keep_name(self) -> None:
        """Before the service is asked: the Hub itself keeps the state when the server is up, and may die before."""
        self.orm_spawner.state = self.get_state()
        self.user.db.commit()

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._run, self._asked_as = str(state.get("run") or ""), str(state.get("user") or "")

    def clear_state(self) -> None:
        super().clear_state()
        self._run = self._asked_as = ""

    async def rename(self, old_name: str, new_name: str) -> None:
        """A server's files belong to its user, so only a run that still lives under the old name is in the way."""
        try:
            view = await self.connection().client.view(self._key_of(old_name))
        except (Unreachable, Refused) as error:
            raise refusal(
                "The server cannot be renamed now: Glidepath does not answer. Try again in a moment.",
                reason="unreachable",
                log_message=str(error),
            ) from error
        if not view.over:
            raise refusal("Stop the server before renaming it.", reason="alive")

    async def delete_forever(self) -> None:
        """The user or this named server is deleted: what the user kept at the sites goes with the user only."""
        if self.name:
            return
        deadline, wait_s = time.monotonic() + self.outage_patience, RETRY_FIRST_S
        while True:
            try:
                await self.connection().client.forget_home(self._key)
                return
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) or time.monotonic() > deadline:
                    self.log.error("What %s kept at the sites is still there: %s", self._log_name, error)
                    return
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    # ---- its parts ----------------------------------------------------------------------------------------------

    async def _start(self) -> str:
        connection = self.connection()
        body = await self._start_body()
        started = await self._ask(connection, body)
        view = connection.feed.take(started.view)
        self._run = view.run or ""
        if started.adopted is not None:
            self._adopt(started.adopted.hub_token)
        looked = time.monotonic()
        while True:
            if view.over or (view.run or "") > self._run:
                raise refusal_of_end(view)
            if view.state == "ready" and view.url:
                return view.url
            seen = await connection.feed.changed(self._key, view, LOOK_AGAIN_S)
            if seen is view or seen is None:
                # The stream may be lost at any time of the wait, so that is asked each time and not once before it.
                if not connection.feed.silent_for_s and time.monotonic() - looked < LOOK_SELDOM_S:
                    continue
                looked = time.monotonic()
                try:
                    seen = connection.feed.take(await connection.client.view(self._key))
                except (Unreachable, Refused) as error:
                    self.log.warning("Starting %s: %s; still waiting", self._log_name, error)
                    continue
            view = seen

    async def _ask(self, connection: Connection, body: dict[str, Any]) -> Started:
        """Asks for the start until there is an answer. Repeating is harmless: the body names this spawn."""
        deadline, wait_s = time.monotonic() + self.outage_patience, RETRY_FIRST_S
        self._gave_up, self._unsure = False, True
        while True:
            try:
                # A stop interrupts the wait and not the request, which may be with the service already.
                self._asking = asyncio.ensure_future(connection.client.start(self._key, body))
                self._asking.add_done_callback(_take_note)
                started = await asyncio.shield(self._asking)
                self._unsure = False
                return started
            except Refused as refused:
                if refused.retry_after_s is None or time.monotonic() > deadline:
                    self._gave_up, self._unsure = True, False
                    raise refusal_of_start(refused.problem) from refused
                wait_s = max(wait_s, min(refused.retry_after_s, RETRY_MOST_S))
            except Unreachable as error:
                problem = connection.embedded.problem if connection.embedded else None
                if problem is not None or time.monotonic() > deadline:
                    self._gave_up, self._unsure = True, False
                    raise refusal(
                        "Glidepath's service does not answer, so no server can be started now. Servers that run are "
                        "not affected. Try again in a few minutes, or tell the operators.",
                        reason="unreachable",
                        log_message=str(problem or error),
                    ) from error
                self.log.warning("Starting %s: %s; trying again", self._log_name, error)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    async def _start_body(self) -> dict[str, Any]:
        env = {name: str(value) for name, value in self.get_env().items() if value is not None}
        body = {
            "spawn_id": secrets.token_hex(16),
            "groups": self._groups(),
            "options": self.user_options,
            "argv": [*self.cmd, *self.get_args()],
            "env": env,
            "prefix": self.server.base_url,
            "working_dir": self.format_string(self.working_dir) or None,
            "auth_state": await self._auth_state(),
        }
        try:
            json.dumps(self.user_options, allow_nan=False)
        except (TypeError, ValueError):
            raise refusal(
                "The options hold something that is neither text nor number.", reason="options", status=400
            ) from None
        return body

    def _adopt(self, hub_token: str) -> None:
        """A live run of an earlier spawn: its server holds an older Hub token, so that one must be the server's again.

        The Hub notices after ``start()`` that the token differs: it drops the one that it made, takes the older one
        into its database when it is no longer there, and makes it the OAuth client's secret. It also resets what that
        client is allowed, which :meth:`start_polling`, called right after, puts back.
        """
        holder = APIToken.find(self.user.db, hub_token)
        if holder is not None and holder.user_id != self.orm_spawner.user_id:
            self._gave_up = True  # so that the Hub does not stop it
            raise refusal(
                "A server of somebody who had this name before still runs. Ask the operators to stop it.",
                reason="name_reused",
            )
        self.log.info("%s was found alive and is taken back", self._log_name)
        client = self.orm_spawner.oauth_client
        if client is not None:
            self._oauth_client_as_made = (list(client.allowed_scopes), client.description)
        self.api_token = hub_token

    def _restore_oauth_client(self) -> None:
        made, self._oauth_client_as_made = self._oauth_client_as_made, None
        client = self.orm_spawner.oauth_client if made is not None else None
        if made is not None and client is not None:
            client.allowed_scopes, client.description = made

    async def _url_that_answers(self) -> str | None:
        connection = self.connection()
        if not await connection.feed.synced(LOOK_AGAIN_S):
            return None
        view = connection.feed.view(self._key)
        if view is None:
            view = connection.feed.take(await connection.client.view(self._key))
        if view.over:
            # The Hub's probe then fails and it cleans up: let it do so soon.
            self._http_timeout_set, self.http_timeout = self._http_timeout_set or self.http_timeout, PROBE_ENDED_S
            return str(self.server.url)
        if view.state == "ready" and view.url:
            async with _probing():
                if await connection.client.answers(
                    url_path_join(view.url, self.server.base_url, "api"), timeout_s=LOOK_AGAIN_S
                ):
                    return self._note_url(view.url)
        await connection.feed.changed(self._key, view, 2.0 if view.state == "ready" else LOOK_AGAIN_S)
        return None

    def _note_url(self, url: str) -> str:
        """The Hub keeps scheme, host and port of a server's URL; after a restart it forgets to set the scheme."""
        parts = urlsplit(url)
        self.server.proto = parts.scheme
        self.server.ip = parts.hostname or ""
        self.server.port = parts.port or (443 if parts.scheme == "https" else 80)
        return str(self.server.url)

    async def _progress(self) -> AsyncGenerator[dict[str, Any], None]:
        connection, shown, view = self.connection(), None, None
        while self._starting or view is None:
            view = connection.feed.view(self._key)
            ours = view is not None and view.run == self._run and self._run
            if connection.feed.silent_for_s > 1:
                event = progress.unreachable(connection.feed.silent_for_s)
            elif ours and view is not None:
                event = progress.event(view)
            else:
                event = {"message": "Asking Glidepath for a server"}
            if event != shown:
                shown = event
                yield event
            if ours and view is not None and (view.over or view.state == "ready"):
                return
            await connection.feed.changed(self._key, view, 2.0)

    def _watch_end(self) -> None:
        feed = self.connection().feed
        feed.call_at_end(self._key, self._ended)
        view = feed.view(self._key)
        if view is not None and view.over:
            self._ended(view)

    def _ended(self, view: ServerView) -> None:
        """The event stream told the end: have the Hub look now instead of at its next poll."""
        if self._telling_end is None or self._telling_end.done():
            self.log.info("%s has ended: %s", self._log_name, view.end.reason if view.end else view.state)
            self._telling_end = asyncio.create_task(self._tell_hub(), name=f"glidepath end of {self._log_name}")

    async def _tell_hub(self) -> None:
        # While the Hub is busy with this server, telling would run into it.
        while self.pending:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        if self._poll_callback is not None:
            await self.poll_and_notify()

    async def _end_interrupted(self) -> None:
        """A stop interrupted the start. Where the Hub took more than a second for that, it answered with an error,
        forgot the stop, and takes the server for one that is up: neither routed nor watched, never to be started again.
        """
        await asyncio.sleep(INTERRUPTED_FOR_S)
        while self.pending:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        if self.ready and not self._callbacks and self.user.spawners.get(self.name) is self:
            self.log.warning("%s was stopped while it started; ending what is left of it", self._log_name)
            await self.user.stop(self.name)

    def _refuse_internal_ssl(self) -> None:
        if self.internal_ssl:
            raise refusal(
                "Glidepath does not support JupyterHub.internal_ssl yet; its links are encrypted by themselves.",
                reason="internal_ssl",
            )

    async def _service_form(self) -> str:
        """The service's form; a service that is just being started again is waited for."""
        connection, deadline = self.connection(), time.monotonic() + FORM_PATIENCE_S
        who = await self._who() | {"live_url": self._live_url()}
        while True:
            try:
                form = await connection.client.form(who, timeout_s=max(0.1, deadline - time.monotonic()))
                return last_end(connection.feed.view(self._key)) + form
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RETRY_FIRST_S)

    async def _auth_state(self) -> dict[str, str]:
        if not self.auth_state_fields:
            return {}
        state = await self.user.get_auth_state() or {}
        named = {name: state[name] for name in self.auth_state_fields if state.get(name) is not None}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}

    async def _who(self) -> dict[str, Any]:
        return {
            "user": self.user.name,
            "server": self.name,
            "groups": self._groups(),
            "options": self._options_to_show(),
        }

    def _options_to_show(self) -> dict[str, Any]:
        """The last choice, as the form's first one; only what the form knows."""
        last = self.user_options or (self.orm_spawner.user_options if self.orm_spawner else None) or {}
        return options_from_form(
            {
                name: [value if isinstance(value, str) else str(value)]
                for name, value in last.items()
                if isinstance(value, str | int | float)
            }
        )

    def _groups(self) -> list[str]:
        return [group.name for group in self.user.groups]

    def _live_url(self) -> str | None:
        """Where the form asks again; ``None`` when the service's page has an origin of its own."""
        if not self.live_form or self.user.settings.get("subdomain_host"):
            return None
        base_url = self.hub.base_url.removesuffix("hub/")
        return str(url_path_join(base_url, "services", self.page_name, "placement"))

    @property
    def _key(self) -> str:
        return self._key_of(self.name)

    def _key_of(self, server_name: str) -> str:
        return ServerKey(self.hub_name, self._asked_as or self.user.name, server_name).full()

    def connection(self) -> Connection:
        """This Hub's connection to the service; opened by whoever asks first."""
        facts = HubFacts(self.hub_name, self.hub.api_url, self.hub.base_url.removesuffix("hub/"))
        return connect(self._where(), facts, self.service_config, self.log, _hub_stops_servers)

    def slip(self) -> str | None:
        """What is wrong with how this Hub is told to reach the service, in a sentence."""
        return self._where().slip()

    def where_for_page(self) -> dict[str, str]:
        """What the page of servers must know to find the same service."""
        where = self._where()
        secret = where.secret_file or str(secret_file(Path(where.state_dir), where.hub_name))
        return {
            "hub_name": where.hub_name,
            "service_url": where.service_url,
            "secret_file": str(Path(secret).absolute()),
            "state_dir": where.state_dir,
        }

    def _where(self) -> Where:
        return Where(self.service_url, self.hub_name, self.secret_file, str(Path(self.state_dir).absolute()))


def _status(view: ServerView) -> int:
    return view.end.status() if view.end is not None else 0


def _take_note(asking: asyncio.Future[Started]) -> None:
    """A request that failed after its start was stopped: nobody waits for its error any more."""
    if not asking.cancelled():
        asking.exception()


def _probing() -> asyncio.Semaphore:
    return _probes.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(PROBES_AT_ONCE))


def _hub_stops_servers() -> bool:
    """Whether this Hub ends its servers when it is stopped; asked at its clean end."""
    from jupyterhub.app import JupyterHub

    return bool(JupyterHub.initialized() and JupyterHub.instance().cleanup_servers)
