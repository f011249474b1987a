"""What schemathesis cannot know of the API: which Hub it is, what else a body must keep to, and what is safe to start.

Loaded by schemathesis in its own environment. Nearly all paths name the Hub whose secret is shown, so that what is
asked comes past the door, and most bodies are made to fit where only words tell the rule; the rest is as generated.
"""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis

KEYS = ("main.ada.", "main.ada.lab", "main._3cb_3e.", "main.ada_40example_2eorg._2e_2e")
OPTIONS = ("site", "cores", "memory_mb", "gpus", "gpu_kind", "arch", "walltime_min", "preset")
#: One generated value of so many is left as it is.
AS_GENERATED = 4


@schemathesis.hook
def map_path_parameters(_context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    number = number_of(path_parameters)
    if not path_parameters or number % AS_GENERATED == 0:
        return path_parameters
    told = {"hub": "main", "key": KEYS[number // AS_GENERATED % len(KEYS)]}
    return path_parameters | {name: told[name] for name in told if name in path_parameters}


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    number = number_of(body)
    fitting: dict[str, Any] = {}
    if is_texts(body.get("argv")):
        fitting["argv"] = ["/bin/true"]  # always: what is started ends at once and does nothing
    if number % AS_GENERATED:
        if isinstance(body.get("prefix"), str):
            fitting["prefix"] = "/user/ada/"
        if isinstance(body.get("spawn_id"), str):
            fitting["spawn_id"] = str(number)
        if isinstance(body.get("env"), dict):
            fitting["env"] = {f"V{at}": value for at, value in enumerate(body["env"].values())}
        if isinstance(body.get("options"), dict) and number % 2:
            fitting["options"] = dict(zip(OPTIONS, body["options"].values()))  # noqa: B905
    return body | fitting


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def number_of(value: Any) -> int:
    """The same for the same value, whatever was generated before."""
    return zlib.crc32(repr(value).encode())
