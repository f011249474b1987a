"""A real Hub for the tests, without a proxy process: what the Hub does with a spawner is what is tested."""

import os

from jupyterhub.proxy import Proxy


class NoProxy(Proxy):
    """Keeps routes in memory."""

    should_start = False
    routes: dict = {}

    async def add_route(self, routespec, target, data):
        self.routes[self.validate_routespec(routespec)] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec):
        self.routes.pop(self.validate_routespec(routespec), None)

    async def get_all_routes(self):
        return dict(self.routes)


c = get_config()  # noqa: F821
folder = os.environ["HUB_TEST_FOLDER"]
c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['HUB_TEST_PUBLIC_PORT']}"
if os.environ["HUB_TEST_PROXY"]:
    c.ConfigurableHTTPProxy.command = [os.environ["HUB_TEST_PROXY"]]
    c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{os.environ['HUB_TEST_PROXY_API_PORT']}"
    c.ConfigurableHTTPProxy.pid_file = f"{folder}/proxy.pid"
else:
    c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{os.environ['HUB_TEST_PORT']}"
c.JupyterHub.db_url = f"sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = f"{folder}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"op"}
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.JupyterHub.services = [{"name": "tests", "api_token": "test-token-0123456789abcdef"}]
c.JupyterHub.load_roles = [
    {"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "access:servers", "tokens"]}
]
c.Spawner.consecutive_failure_limit = 2
c.Spawner.oauth_client_allowed_scopes = ["read:users:name!user"]

if os.environ.get("HUB_TEST_CONFIGURE"):
    from jupyterhub_glidepath import configure

    configure(c, page=bool(os.environ["HUB_TEST_PROXY"]), operators=["grace"])
else:
    c.JupyterHub.spawner_class = "glidepath"
    c.JupyterHub.init_spawners_timeout = 1
if os.environ.get("HUB_TEST_SERVICE"):
    c.GlidepathSpawner.service_url = os.environ["HUB_TEST_SERVICE"]
    c.GlidepathSpawner.secret_file = os.environ["HUB_TEST_SECRET"]
c.DummyAuthenticator.password = "demo"
c.GlidepathSpawner.state_dir = f"{folder}/state"
c.GlidepathSpawner.http_timeout = 3
c.GlidepathSpawner.outage_patience = 2
exec(os.environ.get("HUB_TEST_MORE", ""))
