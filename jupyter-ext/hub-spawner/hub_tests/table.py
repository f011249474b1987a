"""Which of JupyterHub's tests are run, and which of those cannot hold for a spawner that is no local process.

The tests that are listed are run too, and must fail: an entry that would pass, or names no test, fails the run.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

#: Modules are run as a whole (scripts/hub-tests names them), but of this one only the tests whose source touches a
#: server's life; the others are about users, groups, tokens and services.
IN_PART = "jupyterhub.tests.test_api"
TOUCHES_SERVERS = re.compile(r"spawn|progress|['/]servers?\b")


#: By module and test, or one case of it: why, in a sentence. With every supported JupyterHub.
CANNOT_APPLY = {
    "test_spawner::test_stop_spawner_sigint_fails": (
        "expects the negative number that Popen has for a signal; a server that is stopped as asked ends with 0"
    ),
    "test_spawner::test_stop_spawner_stop_now": (
        "expects the negative number that Popen has for a signal; a server that is stopped as asked ends with 0"
    ),
    "test_spawner::test_popen_kwargs": (
        "reads what LocalProcessSpawner hands to Popen in the Hub's process; here an agent starts the server"
    ),
    "test_spawner::test_shell_cmd": (
        "is about shell_cmd, a setting of LocalProcessSpawner that the base class does not have"
    ),
    "test_spawner::test_predefined_options_from_form[default]": (
        "expects the form's fields as they are where nothing is set; ours reads the fields of its own form"
    ),
    "test_api::test_progress": (
        "expects the one sentence that the base class has for progress; ours tells how far the server is"
    ),
    "test_api::test_progress_bad_slow": (
        "expects the base class's sentence, and the words of an exception; a server that fails is told with its end"
    ),
    "test_api::test_info": "expects the name of the mock's class in what the Hub tells of itself",
}


def is_meant(module: str, function: Any) -> bool:
    """Whether this test function belongs to the selection."""
    return module != IN_PART or TOUCHES_SERVERS.search(inspect.getsource(function)) is not None
