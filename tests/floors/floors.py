"""The floors of this house, as data, and what breaks them.

In: manifests as `cargo metadata` tells them, Rust sources as text. Out: one sentence per forbidden arrow.
Nothing is run here; `test_floors.py` asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

#: Which crates a crate may build on. Who is not named here does not belong to the house.
MAY_USE: dict[str, set[str]] = {
    "domain": set(),
    "api-types": set(),
    "tunnel": set(),
    "svc-kit": {"api-types"},
    "backends": {"domain"},
    "agent": {"api-types", "tunnel"},
    "spawner-svc": {"api-types", "backends", "domain", "svc-kit", "tunnel"},
    "testkit": {"api-types", "domain", "tunnel"},
    "bench": {"tunnel"},
}
#: What only tests may use.
FOR_TESTS_ALONE = {"testkit"}
#: Libraries that would bring a runtime, the network or a database to a floor that is pure, or weight to the agent.
FOREIGN = {
    "domain": {"tokio", "tokio-util", "hyper", "reqwest", "axum", "sqlx", "nix", "jiff", "tracing", "rand"},
    "api-types": {"tokio", "tokio-util", "hyper", "reqwest", "axum", "sqlx", "nix", "tracing"},
    "tunnel": {"axum", "reqwest", "sqlx", "nix"},
    "agent": {"axum", "reqwest", "sqlx", "tera"},
}
#: What pure code does not call.
IMPURE = re.compile(r"\b(?:std::(?:fs|net|process|thread)\b|SystemTime::now|Instant::now)")
IMPURE_ROOMS = {"fs", "net", "process", "thread"}

#: Inside spawner-svc: the floor of each room. A room uses those below it, and neighbours that no wall hides.
ROOMS = {
    "clock": 0,
    "config": 0,
    "notable": 0,
    "arrivals": 1,
    "seal": 1,
    "sites": 1,
    "store": 1,
    "tls": 1,
    "proxy": 2,
    "spawn": 2,
    "metrics": 3,
    "http": 4,
    "app": 5,
    "doctor": 6,
    "command": 7,
    "main": 8,
}
#: Rooms of one floor that never see each other: they meet in `arrivals`.
WALLS = {frozenset({"proxy", "spawn"})}
#: `app` makes the backends; `config` only asks each for the rules of its own table, to tell every problem at once.
SEE_BACKENDS = {"app", "config"}
#: `convert` turns one into the other; `offer` draws a page from both.
SEE_WIRE_AND_DOMAIN = {"http/convert.rs", "http/offer.rs"}
PREFIX = "glidepath-"


def crate_arrows(metadata: Mapping[str, Any]) -> Iterable[tuple[str, str, bool]]:
    """Every arrow between crates and to libraries: who, to whom, and whether for its tests alone."""
    for package in metadata["packages"]:
        for needed in package["dependencies"]:
            yield package["name"], needed["name"], needed["kind"] == "dev"


def broken_floors(metadata: Mapping[str, Any]) -> list[str]:
    """What `cargo metadata --no-deps` shows that the table forbids."""
    broken = []
    for package in metadata["packages"]:
        if package["name"].removeprefix(PREFIX) not in MAY_USE:
            broken.append(f"{package['name']} stands on no floor: give it one in tests/floors/floors.py")
    for user, used, for_tests in crate_arrows(metadata):
        above, below = user.removeprefix(PREFIX), used.removeprefix(PREFIX)
        if used in FOREIGN.get(above, set()) and not for_tests:
            broken.append(f"{above} must not need {used}")
        if not used.startswith(PREFIX) or above == below:
            continue
        allowed = MAY_USE.get(above, set()) | (FOR_TESTS_ALONE if for_tests else set())
        if below not in allowed:
            broken.append(f"{above} must not build on {below}")
    return broken


def broken_walls(sources: Mapping[str, str]) -> list[str]:
    """What the imports inside spawner-svc show that its rooms forbid. Keys are paths below `src`."""
    broken = []
    for path, text in sorted(sources.items()):
        room = PurePosixPath(path).parts[0].removesuffix(".rs")
        if room == "lib" or path.endswith("tests.rs"):
            continue
        code = without_tests_and_comments(text)
        for other in sorted(rooms_named(code, path)):
            if other == room or other not in ROOMS:
                continue
            if room not in ROOMS:
                broken.append(f"{path}: {room} is no room: give it a floor in tests/floors/floors.py")
            elif ROOMS[other] > ROOMS[room]:
                broken.append(f"{path}: {room} must not look up to {other}")
            elif frozenset({room, other}) in WALLS:
                broken.append(f"{path}: {room} and {other} meet only in arrivals")
        if "glidepath_backends" in code and room not in SEE_BACKENDS:
            broken.append(f"{path}: only app and config name a concrete backend")
        wire = re.search(r"\bglidepath_api_types::\{?[^;]*?\bspawner\b", code)
        if wire and "glidepath_domain" in code and path not in SEE_WIRE_AND_DOMAIN:
            broken.append(f"{path}: only {' and '.join(sorted(SEE_WIRE_AND_DOMAIN))} see wire and domain together")
    return broken


def impure(sources: Mapping[str, str]) -> list[str]:
    """Where code of a pure crate asks the world. Keys are paths below `src`."""
    broken = []
    for path, text in sorted(sources.items()):
        if path.endswith("tests.rs"):
            continue
        code = without_tests_and_comments(text)
        asked = {found.group() for found in IMPURE.finditer(code)}
        asked |= {f"std::{room}" for room in grouped(code, "std::{") & IMPURE_ROOMS}
        broken += [f"{path}: {what} in a pure crate" for what in sorted(asked)]
    return broken


def rooms_named(code: str, path: str) -> set[str]:
    """The top modules that this file names: `crate::x`, `crate::{x, y}`, and as many `super::` as lead to the top."""
    parts = PurePosixPath(path).with_suffix("").parts
    named: set[str] = set()
    for start in ("crate::", r"super::" * len(parts)):
        named |= set(re.findall(rf"\b(?<!super::){start}([a-z_]+)", code)) - {"super"}
        named |= grouped(code, start + "{")
    return named


def grouped(code: str, start: str) -> set[str]:
    """The first words of every use tree that opens with `start`."""
    named: set[str] = set()
    for found in re.finditer(rf"\b(?<!super::){re.escape(start)}", code):
        named |= first_words(code, found.end())
    return named


def first_words(code: str, at: int) -> set[str]:
    """The first word of each branch of a use tree that opens at `at`."""
    depth, words, branch = 1, set(), ""
    for letter in code[at:]:
        if letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
        if depth == 1 and letter == ",":
            words.add(branch)
            branch = ""
        elif depth == 0:
            words.add(branch)
            break
        elif depth == 1:
            branch += letter
    return {match.group() for word in words if (match := re.match(r"[a-z_]+", word.strip()))}


def without_tests_and_comments(text: str) -> str:
    """The code that ships: no comments, no string contents, no `#[cfg(test)]` item, no OpenAPI annotation."""
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    code = re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', code)
    code = re.sub(r"//[^\n]*", "", code)
    code = re.sub(r"#\[utoipa::path\(.*?\)\]\s*\n", "\n", code, flags=re.DOTALL)
    at = code.find("#[cfg(test)]")
    while at >= 0:
        end = end_of_item(code, at)
        code = code[:at] + code[end:]
        at = code.find("#[cfg(test)]")
    return code


def end_of_item(code: str, at: int) -> int:
    """Where the item that begins at `at` ends: after its braces, or its semicolon when it has none."""
    depth = 0
    for offset, letter in enumerate(code[at:], at):
        if letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return offset + 1
        elif letter == ";" and depth == 0:
            return offset + 1
    return len(code)
