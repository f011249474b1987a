"""The options form: what the page sends as options, and a plain form for when the service cannot render its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
