"""How the Hub is told that a server does not start: in words, without a traceback, without blaming the Hub.

JupyterHub 6 has ``SpawnException`` for it; 5.x takes an ``HTTPError`` below 500 with ``jupyterhub_message``. Both show
an HTML message as it is, so it is escaped here. Only errors of the Hub itself may count towards
``consecutive_failure_limit``: 6.x leaves refusals out but counts a server that did not answer in time, 5.x counts
every failure. :func:`leave_uncounted` takes both back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from html import escape
from typing import Any

from tornado import web
from tornado.util import TimeoutError as TornadoTimeoutError

from jupyterhub_glidepath.wire import Problem, ServerView

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5
    SpawnException = None

#: The most of each that a page shows.
MESSAGE_MAX_CHARS = 2_000
LINES_MAX = 20
LINE_MAX_CHARS = 400


def refusal(
    message: str,
    *,
    reason: str,
    status: int = 409,
    points: Iterable[str] = (),
    lines: Iterable[str] = (),
    log_message: str = "",
) -> web.HTTPError:
    """An exception to raise from ``start()``. ``points`` are shown as a list, ``lines`` as preformatted text."""
    message = sentence_case(clean(message, MESSAGE_MAX_CHARS))
    points = [clean(point, LINE_MAX_CHARS) for point in points][:LINES_MAX]
    lines = [clean(line, LINE_MAX_CHARS) for line in list(lines)[-LINES_MAX:]]
    plain = "\n".join([message, *(f"- {point}" for point in points), *(f"| {line}" for line in lines)])
    html = f"<p>{escape(message)}</p>"
    if points:
        html += "<ul>" + "".join(f"<li>{escape(point)}</li>" for point in points) + "</ul>"
    if lines:
        html += f'<pre style="text-align: left; white-space: pre-wrap">{escape(chr(10).join(lines))}</pre>'
    status = status if 400 <= status < 500 else 409
    log_message = clean(log_message, MESSAGE_MAX_CHARS) or plain
    error: Any
    if SpawnException is not None:
        error = SpawnException(
            plain, reason=_label(reason), status_code=status, message_html=html, log_message=log_message
        )
    else:
        # The first argument is a format for the others: hand the text over as an argument.
        error = web.HTTPError(status, "%s", log_message)
    error.jupyterhub_message = plain
    error.jupyterhub_html_message = html
    error.glidepath_reason = _label(reason)
    return error


def refusal_of_start(problem: Problem) -> web.HTTPError:
    """The service said no to a start."""
    if problem.status in (401, 404):
        return refusal(
            "Glidepath's service does not know this Hub, so no server can be started. Tell the operators.",
            reason="unknown_hub",
            log_message=f"{problem.status} {problem.title}; check c.GlidepathSpawner.hub_name and .secret_file",
        )
    if problem.code == "no_site":
        points = [said for _site, said in problem.fields]  # each begins with the site's title
    else:
        points = [f"{field.removeprefix('options.')}: {said}" for field, said in problem.fields]
    status = 400 if problem.status == 422 else problem.status
    return refusal(problem.title, reason=problem.code, status=status, points=points)


def refusal_of_end(view: ServerView) -> web.HTTPError:
    """The server ended before it was ready."""
    end = view.end
    if end is None:
        return refusal("The server ended before it was ready.", reason="ended")
    message = end.message or "The server ended before it was ready."
    verdicts = [f"{one.title}: {one.sentence}" for one in view.verdicts] if end.reason == "no_site" else []
    return refusal(message, reason=end.reason, points=verdicts, lines=end.last_lines)


def leave_uncounted(spawner: Any) -> None:
    """Keeps what happens to this spawn from now on out of the Hub's count of consecutive failures.

    Called in ``start()``: the Hub's own callbacks are on the spawn's future then, and ours runs right behind them.
    """
    future: asyncio.Future[Any] | None = getattr(spawner, "_spawn_future", None)
    settings: dict[str, Any] | None = getattr(spawner.user, "settings", None)
    if future is None or settings is None or future.done():
        return
    limit = spawner.consecutive_failure_limit
    spawner.consecutive_failure_limit = 0  # the Hub compares before our callback runs

    def settle(ended: asyncio.Future[Any]) -> None:
        spawner.consecutive_failure_limit = limit
        error = None if ended.cancelled() else ended.exception()
        if isinstance(error, web.HTTPError):
            counted = SpawnException is None and error.status_code < 500
        else:
            counted = isinstance(error, asyncio.TimeoutError | TimeoutError | TornadoTimeoutError)
        if counted:
            settings["failure_count"] = max(0, settings.get("failure_count", 0) - 1)

    future.add_done_callback(settle)


def clean(text: str, most: int) -> str:
    """Text from outside as a page may show it: without control characters, of bounded length."""
    kept = "".join(c for c in text[: most + 1] if c.isprintable() or c == "\n")
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def sentence_case(text: str) -> str:
    """The service's sentences begin small, as they may stand within others."""
    return text[:1].upper() + text[1:]


def _label(reason: str) -> str:
    word = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in reason)
    return word[:64] or "refused"
