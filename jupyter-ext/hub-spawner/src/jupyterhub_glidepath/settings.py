"""What an operator may set of the spawner, as ``c.GlidepathSpawner.NAME``, and what is right where nothing is said."""

from __future__ import annotations

from pathlib import Path

from jupyterhub.spawner import Spawner
from traitlets import Bool, Dict, Integer, List, Unicode, default
from traitlets.config import LoggingConfigurable

#: The service bounds every step of a start and says so in words; the Hub's own limit lies far above.
START_TIMEOUT_S = 31 * 24 * 3600
#: Longer than a cut of the link that streams survive.
HTTP_TIMEOUT_S = 120


class GlidepathSettings(LoggingConfigurable):
    """The traits; what is done with them is :class:`jupyterhub_glidepath.spawner.GlidepathSpawner`'s."""

    service_url = Unicode(
        "",
        help="""Base URL of the Glidepath service, such as ``https://glidepath.example.org``.

        When empty, the Hub starts a service of its own and keeps it alive: see ``state_dir``.
        """,
    ).tag(config=True)

    hub_name = Unicode(
        "hub",
        help="""The name of this Hub in the service's config: 1 to 63 of ``a-z``, ``0-9`` and ``-``.

        It is part of every server's key: do not change it while servers run.
        """,
    ).tag(config=True)

    secret_file = Unicode(
        "",
        help="""File with this Hub's secret, readable by the Hub's account alone (mode 0600).

        Needed with ``service_url``. The embedded service's secret is made and kept in ``state_dir``.
        """,
    ).tag(config=True)

    state_dir = Unicode(
        help="""Folder in which the embedded service keeps its state. Default: ``glidepath`` beside the Hub's own
        files (its working directory). One service per folder; it must not be on a network file system.
        """,
    ).tag(config=True)

    @default("state_dir")
    def _state_dir_default(self) -> str:
        return str(Path.cwd() / "glidepath")

    service_config = Dict(
        help="""Config of the embedded service, as its reference describes it, with tables as dicts and arrays of
        tables as lists of dicts. ``state_dir`` and this Hub's own entry are filled in. For example::

            c.GlidepathSpawner.service_config = {
                "site": [{"name": "here", "backend": "process", "process": {"work_root": "/srv/glidepath-jobs"}}],
                "presets": [{"name": "small", "title": "Small", "cores": 1, "memory_mb": 1024}],
            }

        Default: one site, this machine.
        """,
    ).tag(config=True)

    auth_state_fields = List(
        Unicode(),
        help="""Fields of the user's ``auth_state`` that are handed to the service (which seals them). Default: none.

        ``Authenticator.enable_auth_state`` must be set for it.
        """,
    ).tag(config=True)

    working_dir = Unicode(
        "",
        help="""Folder in which a server starts, below its home when relative; the home when empty. Made when it is
        missing. ``{username}`` stands for the user's name.
        """,
    ).tag(config=True)

    outage_patience = Integer(
        120,
        min=1,
        help="""Seconds for which a start is repeated when the service does not answer it. Then it is refused, in
        words; whatever the service did start meanwhile is found by the next start.
        """,
    ).tag(config=True)

    stop_patience = Integer(
        600,
        min=1,
        help="""Seconds for which a stop is repeated when the service does not answer or refuses it. Then it fails; the
        server can still be cancelled on Glidepath's page.
        """,
    ).tag(config=True)

    live_form = Bool(
        False,
        help="""Whether the options form shows the sites' verdicts as the choices change. Needs Glidepath's Hub
        service; ``jupyterhub_glidepath.configure`` sets both.
        """,
    ).tag(config=True)

    page_name = Unicode(
        "glidepath",
        help="Name of Glidepath's Hub service, which has the page of servers and answers the live form.",
    ).tag(config=True)

    start_timeout = Integer(
        START_TIMEOUT_S,
        help="""Seconds that a start may take. Keep it above the sum of the service's deadlines: the service knows
        how long waiting in a queue is right. When it is passed, the start is cancelled with a word to the user.
        """,
    ).tag(config=True)

    http_timeout = Integer(
        HTTP_TIMEOUT_S,
        help="""Seconds that the Hub waits for a server's first answer, once the relay had one already. Keep it above
        the 60 s for which a cut link is bridged.
        """,
    ).tag(config=True)

    # Answered from memory; ends are told at once by the event stream.
    poll_interval = Integer(30, help=Spawner.poll_interval.help).tag(config=True)

    # The agent listens on a socket and says so; the Hub must only not take port 0 for 80.
    port = Integer(8888, help=Spawner.port.help).tag(config=True)
