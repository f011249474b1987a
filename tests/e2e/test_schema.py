"""The API asked for whatever its own document allows, and for what it forbids: a real service, a real Hub's secret.

How long it asks is set by API_EXAMPLES, the most requests of one kind per operation. The seed is API_SEED, so that a
finding can be had again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import places
from service import Service, site, sites_config

EXAMPLES = os.environ.get("API_EXAMPLES", "60")
SEED = os.environ.get("API_SEED", "1")
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
]
#: The secret comes by the environment: an argument could be read by everybody on this machine.
SETTINGS = """
headers = { Authorization = "Bearer ${HUB_SECRET}" }
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("schema")
    folder.chmod(0o711)
    sites = [site("here", folder, process_slots=2, limits={"servers": 4})]
    service = Service(folder, sites_config(sites, None), [{"name": "main", "api_url": "http://127.0.0.1:9/hub/api"}])
    service.start()
    try:
        yield service
    finally:
        service.stop()


def asked(
    service: Service, folder: Path, document: str, examples: str, *checks: str
) -> subprocess.CompletedProcess[str]:
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS)
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= {"HUB_SECRET": service.secret_file.read_text().strip(), "SCHEMATHESIS_HOOKS": "hooks"}
    environ |= {"PYTHONPATH": str(places.HERE / "asker"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [
            places.schemathesis(),
            f"--config-file={settings}",
            "--no-color",
            "run",
            document,
            f"--url={service.facts['api']}",
            f"--checks={','.join(checks)}",
            f"--max-examples={examples}",
            f"--seed={SEED}",
            "--phases=examples,coverage,fuzzing",
            "--exclude-path-regex=/events$",  # streams have no end
            "--generation-database=none",
            "--suppress-health-check=all",
        ],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )


def test_whatever_is_asked_the_answer_is_one_that_the_document_tells_of(service: Service, tmp_path: Path) -> None:
    done = asked(service, tmp_path, f"{service.facts['api']}/openapi.json", EXAMPLES, *CHECKS)
    print(done.stdout[-9000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " ERROR " not in service.log and "panicked" not in service.log
    assert service.secret_file.read_text().strip() not in service.log
    answers = counted(service)
    started = answers["PUT", "/v1/hubs/{hub}/servers/{key}", "200"]
    assert started > 3, f"what is asked comes past the door and the checks: {answers}"


def counted(service: Service) -> dict[tuple[str, str, str], int]:
    """How often each operation was answered with which status, as the service counts it."""
    text = requests.get(f"{service.facts['metrics']}/metrics", timeout=20).text
    found = re.findall(r'answers_total\{method="(\w+)",route="([^"]*)",status="(\d+)"\} (\d+)', text)
    return {(method, route, status): int(count) for method, route, status, count in found}


def test_an_answer_that_the_document_does_not_tell_of_is_found(service: Service, tmp_path: Path) -> None:
    document = requests.get(f"{service.facts['api']}/openapi.json", timeout=20).json()
    del document["paths"]["/v1/hubs/{hub}/placement"]["post"]["responses"]["422"]
    document["components"]["schemas"]["ServerList"]["required"] = ["server_list"]
    forged = tmp_path / "openapi.json"
    forged.write_text(json.dumps(document))
    done = asked(service, tmp_path, str(forged), "3", "status_code_conformance", "response_schema_conformance")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    assert "Undocumented status code" in done.stdout and "violates schema" in done.stdout, done.stdout[-6000:]
