"""The options form: what the page sends as options, a plain form for when the service cannot render its own, and how
the last server ended, for whoever comes back to start another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from jupyterhub_glidepath.refusal import LINE_MAX_CHARS, LINES_MAX, clean, sentence_case
from jupyterhub_glidepath.wire import ASKED_FOR, ServerView

#: Every option that the service knows; it checks them, and tells all that is wrong.
OPTIONS = (
    "site",
    "preset",
    "cores",
    "memory_mb",
    "gpus",
    "gpu_kind",
    "gpu_memory_mb",
    "arch",
    "walltime_min",
)

_FIELDS = (
    ("cores", "Cores", "1"),
    ("memory_mb", "Memory (MiB)", "128"),
    ("gpus", "GPUs", "0"),
    ("walltime_min", "Longest time (minutes)", "1"),
)


def options_from_form(form: Mapping[str, Sequence[object]]) -> dict[str, str]:
    """The options in a posted form: the first value of each field that was filled in. Nothing is decided here."""
    options = {}
    for name in OPTIONS:
        values = form.get(name) or [""]
        first = values[0]
        if isinstance(first, str) and first.strip():
            options[name] = first.strip()
    return options


def static_form(note: str = "") -> str:
    """Plain fields without sites; what is left empty is chosen by the service. ``note`` is our own text."""
    rows = "".join(
        f'<div class="form-group mb-3"><label class="form-label" for="glidepath-{name}">{label}</label>'
        f'<input class="form-control" type="number" min="{least}" step="1" inputmode="numeric"'
        f' id="glidepath-{name}" name="{name}" placeholder="usual"></div>'
        for name, label, least in _FIELDS
    )
    told = f'<p role="status">{note}</p>' if note else ""
    return f"{told}<p>Leave a field empty for the usual amount. Glidepath chooses the site.</p>{rows}"


#: Ends that a limit of the site brought about.
_LIMITS = frozenset({"walltime", "idle", "unattended"})


def last_end(view: ServerView | None) -> str:
    """HTML that tells how the last server ended, when it was not its user who ended it; else nothing."""
    end = view.end if view is not None and view.over else None
    if end is None or end.reason in ASKED_FOR:
        return ""
    said = sentence_case(clean(end.message, LINE_MAX_CHARS))
    lines = "\n".join(clean(line, LINE_MAX_CHARS) for line in end.last_lines[-LINES_MAX:])
    shown = f'<pre style="white-space: pre-wrap">{escape(lines)}</pre>' if lines else ""
    details = f"<details><summary>Its last lines</summary>{shown}</details>" if shown else ""
    what = "came to a limit" if end.reason in _LIMITS else "ended by itself"
    return (
        f'<div class="alert alert-warning text-start" role="status"><strong>Your last server {what}.</strong> '
        f"{escape(said)}{details}</div>"
    )
