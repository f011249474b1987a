"""Keys, with the examples that the service's own code is tested with."""

import json
from pathlib import Path

import pytest

from jupyterhub_glidepath.keys import ServerKey

VECTORS = json.loads((Path(__file__).parent / "vectors" / "server_key.json").read_text("utf-8"))


def test_there_are_examples():
    assert len(VECTORS) >= 10


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: row["full"])
def test_a_key_is_written_and_read_as_the_service_does(row):
    key = ServerKey(row["hub"], row["user"], row["server"])
    assert key.full() == row["full"]
    assert ServerKey.parse(row["full"]) == key


@pytest.mark.parametrize("user", ["ada", "ü" * 255, "😀" * 255, "a.b_c-d e%2f", "ada@example.org"])
@pytest.mark.parametrize("server", ["", "lab", "über.lab"])
def test_every_key_reads_back(user, server):
    key = ServerKey("hub", user, server)
    assert ServerKey.parse(key.full()) == key


@pytest.mark.parametrize("raw", ["main._61da.", "main.ada", "main.a.b.c", "main._C3_BC.", "main.a_4.", "", "main.ü."])
def test_another_spelling_is_refused(raw):
    with pytest.raises(ValueError, match=r"server key|hex|invalid|codec"):
        ServerKey.parse(raw)
