"""The Hub of an end-to-end test. What differs comes from the file that HOUSE_SETTINGS names."""

# ruff: noqa: F821
import json
import os
from pathlib import Path

from jupyterhub_glidepath import configure

c = get_config()  # type: ignore[name-defined]
told = json.loads(Path(os.environ["HOUSE_SETTINGS"]).read_text())

c.JupyterHub.bind_url = told["bind_url"]
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{told['hub_port']}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{told['proxy_api_port']}"
c.ConfigurableHTTPProxy.auth_token = told["proxy_secret"]
c.ConfigurableHTTPProxy.command = [told["proxy"]]
c.ConfigurableHTTPProxy.pid_file = f"{told['folder']}/proxy.pid"
c.JupyterHub.db_url = f"sqlite:///{told['folder']}/hub.sqlite"
c.JupyterHub.cookie_secret_file = f"{told['folder']}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = told["password"]
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"op"}
c.JupyterHub.allow_named_servers = True
c.JupyterHub.services = [{"name": "tests", "api_token": told["token"]}]
c.JupyterHub.load_roles = [
    {
        "name": "tests",
        "services": ["tests"],
        "scopes": [
            "admin:users",
            "admin:servers",
            "access:servers",
            "tokens",
            "read:hub",
            "proxy",
            "groups",
            "admin:server_state",
        ],
    }
]
c.JupyterHub.load_groups = {"physics": {"users": ["ada"]}}
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
if told["subdomain_host"]:
    c.JupyterHub.subdomain_host = told["subdomain_host"]

configure(c)

c.GlidepathSpawner.hub_name = told["hub_name"]
if told["service_url"]:
    c.GlidepathSpawner.service_url = told["service_url"]
    c.GlidepathSpawner.secret_file = told["secret_file"]
elif told["state_dir"]:
    c.GlidepathSpawner.state_dir = told["state_dir"]
    c.GlidepathSpawner.service_config = told["service_config"]
c.Spawner.cmd = told["server_command"]
c.Spawner.args = ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="]
c.GlidepathSpawner.http_timeout = told["http_timeout"]
#: So few that a test whose failures did count would find its Hub ended.
c.Spawner.consecutive_failure_limit = 5
c.Spawner.environment = {"HOUSE_MARK": "a mark that is no secret", "HOUSE_SECRET": told["server_secret"]}
c.Spawner.environment |= told["environment"]
c.JupyterHub.cleanup_servers = told["cleanup_servers"]
for owner, settings in told["hub_settings"].items():
    c[owner].update(settings)


def choose_command(spawner):
    """Users named `stub-MODE-...` get a stand-in that behaves as the mode says, `light-...` one that is small."""
    if spawner.user.name.startswith("light-"):
        spawner.cmd, spawner.args = [told["light_server"]], ["--ServerApp.sock={socket}"]
    if spawner.user.name.startswith("stub-"):
        mode = spawner.user.name.split("-")[1]
        spawner.cmd = [told["stub_python"], told["stub"], mode]
        spawner.args = ["--ServerApp.sock={socket}"]  # Glidepath fills in the path


c.Spawner.pre_spawn_hook = choose_command
