"""Where the things under test lie: told by the environment that scripts/e2e sets, from .paths."""

from __future__ import annotations

import os
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def _told(name: str) -> str:
    value = os.environ.get(name)
    assert value, f"{name} is not set: run the end-to-end tests by `make e2e`"
    return value


def hub_python(version: str) -> str:
    """The Hub's own Python, with jupyterhub-glidepath."""
    return str(TOP / f".venv-hub{version}" / "bin" / "python")


def server_command(version: str) -> str:
    """The users' JupyterLab, from an environment that every account can read."""
    return f"{_told(f'GLIDEPATH_HUB{version}')}/bin/jupyterhub-singleuser"


def stub_python() -> str:
    return _told("GLIDEPATH_PYTHON")


def proxy() -> str:
    return _told("GLIDEPATH_PROXY")


def chromium() -> str:
    return _told("GLIDEPATH_CHROMIUM")


def service() -> str:
    return _told("GLIDEPATH_SPAWNER_BIN")


def mortal_service() -> str:
    """The service with its crash points built in."""
    return _told("GLIDEPATH_MORTAL_SPAWNER_BIN")


def agent() -> str:
    return _told("GLIDEPATH_AGENT_BIN")


def schemathesis() -> str:
    return f"{_told('GLIDEPATH_SCHEMA')}/bin/schemathesis"


def light_server() -> str:
    """A single-user server that is small enough for hundreds of them."""
    return _told("GLIDEPATH_LIGHT_SERVER_BIN")
