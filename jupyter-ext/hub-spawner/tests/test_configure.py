"""What one call sets in a Hub's config, and that it adds to what the file has."""

from __future__ import annotations

from traitlets.config import Config

from jupyterhub_glidepath import configure
from jupyterhub_glidepath.configure import OPERATE_SCOPE
from jupyterhub_glidepath.spawner import GlidepathSpawner


def test_a_bare_config_becomes_a_glidepath_hub():
    c = Config()
    configure(c)
    assert c.JupyterHub.spawner_class == "glidepath"
    assert c.JupyterHub.concurrent_spawn_limit == 0
    assert c.JupyterHub.init_spawners_timeout == 1
    assert c.GlidepathSpawner.live_form is True
    (page,) = c.JupyterHub.services
    assert page["name"] == "glidepath"
    assert page["url"].startswith("http://127.0.0.1:")
    assert "secret" not in " ".join(page["command"])
    assert "environment" not in page
    (user,) = c.JupyterHub.load_roles
    assert user["name"] == "user"
    assert set(user["scopes"]) == {"self", "access:services!service=glidepath"}
    assert OPERATE_SCOPE in c.JupyterHub.custom_scopes


def test_what_the_file_has_is_kept():
    c = Config()
    c.JupyterHub.services = [{"name": "other"}]
    c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "x"]}, {"name": "r", "scopes": []}]
    c.JupyterHub.custom_scopes = {"custom:mine": {"description": "mine"}}
    configure(c, operators=["grace"], page_name="servers", page_port=8123)
    assert [service["name"] for service in c.JupyterHub.services] == ["other", "servers"]
    assert c.JupyterHub.services[1]["url"] == "http://127.0.0.1:8123"
    roles = {role["name"]: role for role in c.JupyterHub.load_roles}
    assert roles["user"]["scopes"] == ["self", "x", "access:services!service=servers"]
    assert roles["glidepath-operator"]["users"] == ["grace"]
    assert OPERATE_SCOPE in roles["glidepath-operator"]["scopes"]
    assert set(c.JupyterHub.custom_scopes) == {"custom:mine", OPERATE_SCOPE}
    assert c.GlidepathSpawner.page_name == "servers"


def test_limits_that_the_file_has_for_other_spawners_end_no_queued_run():
    c = Config()
    c.Spawner.start_timeout = 60
    c.Spawner.http_timeout = 30
    configure(c)
    spawner = GlidepathSpawner(config=c)
    assert spawner.start_timeout > 7 * 24 * 3600
    assert spawner.http_timeout > 60


def test_limits_that_the_file_has_for_glidepath_count_before_the_call_and_after():
    c = Config()
    c.GlidepathSpawner.start_timeout = 3600
    configure(c)
    c.GlidepathSpawner.http_timeout = 90
    spawner = GlidepathSpawner(config=c)
    assert (spawner.start_timeout, spawner.http_timeout) == (3600, 90)


def test_without_the_page_nothing_else_is_touched():
    c = Config()
    configure(c, page=False)
    assert "services" not in c.JupyterHub
    assert "load_roles" not in c.JupyterHub
    assert "GlidepathSpawner" not in c or "live_form" not in c.GlidepathSpawner
