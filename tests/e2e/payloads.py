"""What attackers write into fields that are others' to read: one table for the tests of the backends and these."""

from __future__ import annotations

import json

import places


def payloads() -> dict[str, str]:
    """By a name that says what each of them aims at."""
    rows = json.loads((places.TOP / "tests" / "payloads.json").read_text())
    found = {row["name"]: row["text"] for row in rows}
    assert len(found) == len(rows) >= 47, "the table is smaller than it was, or a name stands twice"
    return found


PAYLOADS = payloads()


def has_controls(text: str) -> bool:
    """A control character, as Unicode has it."""
    return any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
