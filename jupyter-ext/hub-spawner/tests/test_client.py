"""The client, against a service that misbehaves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conftest import SECRET
from fake_service import FakeService
from jupyterhub_glidepath.client import BadSecretFile, Client, Refused, Unreachable, read_secret

KEY = "hub.ada."


@pytest.fixture
async def client(service: FakeService):
    async def locate() -> str:
        return service.url

    client = Client("hub", locate, lambda: SECRET)
    yield client
    await client.close()


def body() -> dict:
    return {"spawn_id": "1", "argv": ["x"], "env": {}, "prefix": "/user/ada/"}


async def test_a_start_tells_the_server_and_an_adopted_token(client, service):
    started = await client.start(KEY, body())
    assert (started.view.state, started.view.site, started.adopted) == ("queued", "far", None)
    service.adopt = "old-token"
    again = await client.start(KEY, body())
    assert again.view.run == started.view.run
    assert again.adopted.hub_token == "old-token"
    assert "old-token" not in repr(again)


async def test_a_refusal_names_every_field(client, service):
    problems = [{"field": "options.cores", "message": "too many"}, {"field": "options.site", "message": "unknown"}]
    service.refuse_with = (422, {"code": "invalid", "title": "the options are wrong", "problems": problems}, {})
    with pytest.raises(Refused) as refused:
        await client.start(KEY, body())
    assert refused.value.problem.code == "invalid"
    assert refused.value.problem.fields == (("options.cores", "too many"), ("options.site", "unknown"))


async def test_nothing_but_a_clear_no_is_a_refusal(client, service):
    service.broken = True
    with pytest.raises(Unreachable, match="500"):
        await client.view(KEY)
    service.broken = False
    await service.down()
    with pytest.raises(Unreachable, match="cannot be reached"):
        await client.view(KEY)


async def test_a_kept_connection_that_is_closed_is_no_outage(client, service):
    await client.form({"user": "ada"})
    await service.down()
    await service.up()
    assert await client.form({"user": "ada"}) == service.form_html


async def test_a_server_that_never_was_is_over_and_not_an_error(client):
    assert (await client.view(KEY)).over


async def test_events_begin_with_what_is_and_go_on(client, service):
    await service.set(KEY, run="01A", state="queued")
    stream = client.events(None)
    seen = []
    async for event in stream:
        if event is None:
            continue
        seen.append((event.id, event.view.state))
        if len(seen) == 1:
            await service.set(KEY, state="ready")
        else:
            break
    await stream.aclose()
    assert seen == [("1", "queued"), ("2", "ready")]


async def test_what_is_has_an_id_at_its_end_only(client, service):
    await service.set("hub.ada.", run="01A", state="queued")
    await service.set("hub.bob.", run="01B", state="queued")
    stream = client.events(None)
    seen = []
    async for event in stream:
        if event is not None:
            seen.append((event.id, event.view.key))
        if len(seen) == 2:
            break
    await stream.aclose()
    assert seen == [("", "hub.ada."), ("2", "hub.bob.")]


async def test_a_cut_stream_says_so(client, service):
    async def read() -> None:
        async for _ in client.events(None):
            asyncio.get_running_loop().create_task(service.down())

    with pytest.raises(Unreachable):
        await asyncio.wait_for(read(), 5)


async def test_a_wrong_secret_is_refused_and_not_a_dead_server(service):
    async def locate() -> str:
        return service.url

    client = Client("hub", locate, lambda: "wrong")
    with pytest.raises(Refused) as refused:
        await client.view(KEY)
    assert refused.value.problem.status == 401
    await client.close()


async def test_answers_below_500_are_life(client, service):
    for status, alive in ((200, True), (302, True), (404, True), (500, False), (503, False)):
        service.relay_status = status
        assert await client.answers(f"{service.url}/user/ada/api") is alive, status
    await service.down()
    assert not await client.answers(f"{service.url}/user/ada/api")


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path):
    path = tmp_path / "secret"
    with pytest.raises(BadSecretFile, match="cannot be read"):
        read_secret(path)
    path.write_text("x\n")
    path.chmod(0o644)
    with pytest.raises(BadSecretFile, match="chmod 600"):
        read_secret(path)
    path.chmod(0o600)
    assert read_secret(path) == "x"
    path.write_text("\n")
    with pytest.raises(BadSecretFile, match="empty"):
        read_secret(path)
