"""Glidepath for JupyterHub: servers run wherever there is room, and live through crashes and cut links.

In ``jupyterhub_config.py``::

    from jupyterhub_glidepath import configure
    configure(c)

or only ``c.JupyterHub.spawner_class = "glidepath"``, without the page of servers and with a static form.
"""

from jupyterhub_glidepath.configure import configure

__all__ = ["configure"]
__version__ = "0.1.0"
