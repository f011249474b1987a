"""Progress in the user's words: what the Hub's waiting page shows.

In: a server as it stands. Out: one of the Hub's progress events. The page inserts ``html_message`` as it is, so
everything in it is escaped here.
"""

from __future__ import annotations

from html import escape
from typing import Any

from jupyterhub_glidepath.refusal import LINE_MAX_CHARS, clean, sentence_case
from jupyterhub_glidepath.wire import ServerView, Verdict

#: Progress that only the Hub may pass: it says 100 when the server can be used.
MOST = 95
_VERDICTS_MAX = 20
#: The Hub's waiting page centres everything, bullets apart.
_LIST_STYLE = "text-align: left; width: fit-content; margin: auto"


def event(view: ServerView) -> dict[str, Any]:
    """The event that shows this server as it stands."""
    text = sentence(view)
    html = escape(text)
    if view.verdicts:
        items = "".join(f"<li>{verdict_html(one)}</li>" for one in view.verdicts[:_VERDICTS_MAX])
        html += f"<details><summary>Why there</summary><ul style='{_LIST_STYLE}'>{items}</ul></details>"
    return {"progress": min(view.progress, MOST), "message": text, "html_message": html}


def unreachable(silent_for_s: float) -> dict[str, Any]:
    """The event for a service that does not answer: nothing is lost by it."""
    since = f" for {in_words(silent_for_s)}" if silent_for_s >= 5 else ""
    text = f"Glidepath has not answered{since}. What was started goes on; trying again."
    return {"message": text, "html_message": escape(text)}


def sentence(view: ServerView) -> str:
    """What goes on, with the site, the place in the queue and the predicted start when they are known."""
    said = clean(view.message, LINE_MAX_CHARS) or _STATES.get(view.state, "Working on it")
    parts = [sentence_case(said.rstrip(" ."))]
    title = clean(view.site_title(), 100)
    if title and title.lower() not in said.lower() and (view.site or "").lower() not in said.lower():
        parts.append(f"at {title}")
    if view.state in _WAITING:
        if view.queue_position is not None and "queue" not in said.lower():
            parts.append(f"place {view.queue_position} in the queue")
        if view.predicted_wait_s is not None and not any(unit in said for unit in ("second", "minute", "hour", "day")):
            parts.append(f"expected to start in {in_words(view.predicted_wait_s)}")
    if view.life == "unknown" and view.state not in _BEFORE_LIFE and "not answering" not in said.lower():
        parts.append("not answering at the moment, which does not end it")
    return ", ".join(parts)


def verdict_html(verdict: Verdict) -> str:
    """One site's verdict, escaped."""
    title, said = clean(verdict.title, 100), clean(verdict.sentence, LINE_MAX_CHARS)
    chosen = " (chosen)" if verdict.chosen else ""
    return f"<strong>{escape(title)}</strong>{chosen}: {escape(said)}"


def in_words(seconds: float) -> str:
    """A length of time as people say it: about right, never in fractions."""
    seconds = max(0, round(seconds))
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1)} seconds"
    for unit, size, until in (("minutes", 60, 90), ("hours", 3600, 36), ("days", 86_400, 10**9)):
        count = round(seconds / size)
        if count < until:
            return f"about {count} {unit}"
    return "a very long time"


_BEFORE_LIFE = frozenset({"none", "requested", "placed", "submitting", "queued", "ended"})
_WAITING = frozenset({"requested", "placed", "submitting", "queued"})
_STATES = {
    "none": "Not running",
    "requested": "Looking for a site",
    "placed": "A site is chosen",
    "submitting": "Handing the server to the site",
    "queued": "Waiting in the site's queue",
    "dialling": "It has a place; waiting for it to call home",
    "starting": "The server starts",
    "ready": "The server answers",
    "stopping": "The server stops",
    "ended": "The server has ended",
}
