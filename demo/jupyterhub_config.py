"""The demo's Hub: an ordinary JupyterHub with Glidepath and two sites.

What differs from machine to machine comes from demo/run.py by the environment. Read the lower half for how a Hub is
given its sites.
"""

# ruff: noqa: F821
import json
import os
from pathlib import Path

from jupyterhub_glidepath import configure

c = get_config()  # type: ignore[name-defined]
demo = json.loads(Path(os.environ["GLIDEPATH_DEMO"]).read_text())
folder = demo["folder"]

# ---- an ordinary Hub on loopback -----------------------------------------------------------------------------------

c.JupyterHub.bind_url = f"http://127.0.0.1:{demo['port']}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{demo['hub_port']}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{demo['proxy_api_port']}"
c.ConfigurableHTTPProxy.command = [demo["proxy"]]
c.ConfigurableHTTPProxy.pid_file = f"{folder}/proxy.pid"
c.JupyterHub.db_url = f"sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = f"{folder}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"  # everybody's password is the same: for a demo on loopback only
c.DummyAuthenticator.password = "demo"
c.Authenticator.allowed_users = {"ada", "bob", "op"}
c.Authenticator.admin_users = {"op"}
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = True  # the end of the demo is the end of its servers
c.Spawner.cmd = [demo["server"]]
c.Spawner.args = ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="]
c.Spawner.default_url = "/lab"

# ---- Glidepath -----------------------------------------------------------------------------------------------------

configure(c)

here = {
    "name": "here",
    "title": "This machine",
    "backend": "process",
    "reach": "direct",
    "limits": {"cores": 4, "memory_mb": 4096, "walltime_min": 480},
    "process": {"work_root": f"{folder}/jobs-here", "homes": f"{folder}/homes/{{user}}"} | demo["accounts"],
}
far = {
    "name": "far",
    "title": "Far away",
    "backend": "process",
    "reach": "tunnel",
    "labels": {"institution": "Far University"},
    "limits": {"cores": 16, "memory_mb": 16384, "walltime_min": 1440},
    "process": {"work_root": f"{folder}/jobs-far", "homes": f"{folder}/homes/{{user}}", "queue_delay_s": 5}
    | demo["accounts"]
    | demo["far"],
}
c.GlidepathSpawner.state_dir = f"{folder}/glidepath"
c.GlidepathSpawner.service_config = {
    "site": [here, far],
    "agent": {os.uname().machine: demo["agent"]},
    "listen": {"link": demo["link"]},
    "presets": [
        {"name": "small", "title": "Small", "description": "To look around", "cores": 1, "memory_mb": 1024},
        {"name": "medium", "title": "Medium", "description": "A day's work", "cores": 2, "memory_mb": 4096},
        {"name": "large", "title": "Large", "description": "Far away only", "cores": 8, "memory_mb": 12288},
    ],
}
