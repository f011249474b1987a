"""An arrow only points down. First the real house, then proof that the measure can fail."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from floors import MAY_USE, broken_floors, broken_walls, impure

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    told = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline"],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(told.stdout)
    assert {package["name"].removeprefix("glidepath-") for package in found["packages"]} == set(MAY_USE)
    return found


def sources(crate: str) -> dict[str, str]:
    folder = TOP / "crates" / crate / "src"
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.rs")}
    assert len(found) > 3, f"no sources in {folder}"
    return found


def test_no_crate_builds_on_one_that_its_floor_forbids(metadata: dict[str, Any]) -> None:
    assert broken_floors(metadata) == []


def test_no_room_of_the_service_looks_up_or_through_a_wall() -> None:
    assert broken_walls(sources("spawner-svc")) == []


@pytest.mark.parametrize("crate", ["domain", "api-types"])
def test_the_ground_floor_asks_neither_clock_nor_disk_nor_network(crate: str) -> None:
    assert impure(sources(crate) if crate == "domain" else {"all": "".join(all_text(crate))}) == []


def all_text(crate: str) -> list[str]:
    return [path.read_text() for path in (TOP / "crates" / crate / "src").rglob("*.rs")]


@pytest.mark.parametrize(
    ("user", "used", "kind", "sentence"),
    [
        ("domain", "glidepath-api-types", None, "domain must not build on api-types"),
        ("tunnel", "glidepath-domain", None, "tunnel must not build on domain"),
        ("svc-kit", "glidepath-domain", None, "svc-kit must not build on domain"),
        ("backends", "glidepath-tunnel", "build", "backends must not build on tunnel"),
        ("agent", "glidepath-spawner-svc", "dev", "agent must not build on spawner-svc"),
        ("spawner-svc", "glidepath-agent", None, "spawner-svc must not build on agent"),
        ("agent", "glidepath-testkit", None, "agent must not build on testkit"),
        ("domain", "tokio", None, "domain must not need tokio"),
    ],
)
def test_a_forbidden_arrow_in_a_manifest_is_told(
    metadata: dict[str, Any], user: str, used: str, kind: str | None, sentence: str
) -> None:
    house = copy.deepcopy(metadata)
    [package] = [package for package in house["packages"] if package["name"] == f"glidepath-{user}"]
    package["dependencies"].append({"name": used, "kind": kind})
    assert sentence in broken_floors(house)


def test_a_crate_without_a_floor_is_told(metadata: dict[str, Any]) -> None:
    house = copy.deepcopy(metadata)
    house["packages"].append({"name": "glidepath-util", "dependencies": []})
    assert any("glidepath-util stands on no floor" in sentence for sentence in broken_floors(house))


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("spawn/order.rs", "use crate::proxy::Relay;", "spawn and proxy meet only in arrivals"),
        ("proxy.rs", "use crate::{config::Config, spawn::Spawner};", "proxy and spawn meet only in arrivals"),
        ("proxy.rs", "use super::{config, spawn};", "proxy and spawn meet only in arrivals"),
        ("spawn/driver.rs", "use super::super::proxy::Relay;", "spawn and proxy meet only in arrivals"),
        ("spawn/driver.rs", "use super::super::{proxy, store};", "spawn and proxy meet only in arrivals"),
        ("spawn/driver/step.rs", "use super::super::super::proxy::Relay;", "spawn and proxy meet only in arrivals"),
        ("store/rows.rs", "fn a() { crate::http::answer() }", "store must not look up to http"),
        ("spawn.rs", "use glidepath_backends::process::Process;", "only app and config name a concrete backend"),
        (
            "http/servers.rs",
            "use glidepath_api_types::spawner::StartBody;\nuse glidepath_domain::names::HubName;",
            "see wire and domain together",
        ),
        ("extras.rs", "use crate::config::Config;", "extras is no room"),
    ],
)
def test_a_forbidden_import_is_told(path: str, text: str, sentence: str) -> None:
    assert any(sentence in told for told in broken_walls({path: text}))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("spawn.rs", "// crate::proxy is elsewhere\nuse crate::arrivals::Arrivals;"),
        (
            "proxy.rs",
            '#[cfg(test)]\nmod tests { use crate::spawn::Spawner; }\nconst NAME: &str = "crate::spawn";',
        ),
        ("spawn/driver.rs", "use super::proxy::Wire;"),  # a room's own file of that name
        ("spawn/driver/step.rs", "use super::super::proxy::Wire;"),
        ("app.rs", "use crate::{http, proxy, spawn};\nuse glidepath_backends::process;"),
        (
            "http/convert.rs",
            "use glidepath_api_types::spawner::StartBody; use glidepath_domain::names::HubName;",
        ),
    ],
)
def test_an_allowed_import_is_not_told(path: str, text: str) -> None:
    assert broken_walls({path: text}) == []


@pytest.mark.parametrize(
    "text",
    [
        "use std::fs::File;",
        "let now = Instant::now();",
        "std::net::lookup()",
        "use std::{collections::BTreeMap, fs};",
        "use std::{\n    net::{IpAddr, TcpStream},\n};",
    ],
)
def test_asking_the_world_in_pure_code_is_told(text: str) -> None:
    assert len(impure({"placement.rs": text})) == 1
