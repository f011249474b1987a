"""What the Hub asks of the spawner, with a service that is slow, away, or says no."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import web

from conftest import make_spawner, until
from jupyterhub_glidepath import spawner as module
from jupyterhub_glidepath.client import Refused, Unreachable
from jupyterhub_glidepath.refusal import SpawnException

KEY = "hub.ada."
HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.3)
    monkeypatch.setattr(module, "RETRY_MOST_S", 0.3)
    monkeypatch.setattr(module, "FIRST_LOOK_S", 1.0)
    monkeypatch.setattr(module, "FORM_PATIENCE_S", 0.5)


# ---- start ----------------------------------------------------------------------------------------------------


async def test_a_start_waits_through_the_queue_and_returns_the_relays_url(spawner, service):
    starting = asyncio.create_task(spawner.start())
    await until(lambda: KEY in service.servers)
    assert await spawner.poll() is None
    await asyncio.sleep(0.1)
    assert not starting.done()
    await service.ready(KEY)
    assert await starting == service.url
    assert await spawner.poll() is None


async def test_a_start_that_waits_asks_nothing_while_the_events_are_heard(spawner, service, monkeypatch):
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.05)
    starting = asyncio.create_task(spawner.start())
    await until(lambda: KEY in service.servers and spawner.connection().feed.silent_for_s == 0)
    await asyncio.sleep(0.5)  # a look from before the stream was open
    asked = len(service.asked)
    await asyncio.sleep(0.5)
    assert service.asked[asked:] == []
    monkeypatch.setattr(module, "LOOK_SELDOM_S", 0.3)
    await until(lambda: len(service.asked) > asked)  # an event may be missed all the same
    await service.ready(KEY)
    assert await starting == service.url


async def test_a_start_that_waits_looks_by_itself_once_the_events_are_lost(spawner, service, monkeypatch):
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.05)
    starting = asyncio.create_task(spawner.start())
    feed = spawner.connection().feed
    await until(lambda: KEY in service.servers and feed.silent_for_s == 0)

    async def lost() -> None:
        raise Unreachable("the events are lost")

    monkeypatch.setattr(feed, "_listen", lost)
    await service.down()
    await service.up()
    await until(lambda: feed.silent_for_s > 0)
    await service.ready(KEY)
    assert await starting == service.url


async def test_a_start_hands_over_what_the_server_needs_and_no_more(spawner, service):
    spawner.environment = {"COUNT": 3}
    spawner.user_options = {"cores": "2"}
    spawner.args = ["--debug"]
    starting = asyncio.create_task(spawner.start())
    await until(lambda: service.bodies)
    starting.cancel()
    body = service.bodies[0]
    assert set(body) == {"spawn_id", "groups", "options", "argv", "env", "prefix", "working_dir", "auth_state"}
    assert body["argv"] == ["jupyterhub-singleuser", "--debug"]
    assert body["env"]["JUPYTERHUB_API_TOKEN"] == "new-token"
    assert body["env"]["COUNT"] == "3"
    assert (body["groups"], body["options"], body["prefix"]) == (["physics"], {"cores": "2"}, "/user/ada/")


async def test_only_the_named_fields_of_auth_state_are_handed_over(service, secret_file):
    spawner = make_spawner(service.url, secret_file, auth_state_fields=["access_token", "claims", "absent"])

    async def auth_state() -> dict[str, Any]:
        return {"access_token": "t", "refresh_token": "secret", "claims": {"sub": "ada"}}

    spawner.user.get_auth_state = auth_state
    starting = asyncio.create_task(spawner.start())
    await until(lambda: service.bodies)
    starting.cancel()
    assert service.bodies[0]["auth_state"] == {"access_token": "t", "claims": json.dumps({"sub": "ada"})}


async def test_a_start_is_repeated_with_the_same_spawn_id_while_the_service_is_away(spawner, service):
    await service.down()
    starting = asyncio.create_task(spawner.start())
    await asyncio.sleep(0.5)
    assert await spawner.poll() is None
    service.broken = True
    await service.up()
    await asyncio.sleep(0.5)
    service.broken = False
    await until(lambda: KEY in service.servers)
    await service.ready(KEY)
    assert await starting == service.url
    assert len({body["spawn_id"] for body in service.bodies}) == 1


async def test_an_outage_while_the_server_queues_does_not_end_the_start(spawner, service):
    starting = asyncio.create_task(spawner.start())
    await until(lambda: KEY in service.servers)
    await service.down()
    await asyncio.sleep(1)
    assert not starting.done()
    await service.up()
    await service.ready(KEY)
    assert await asyncio.wait_for(starting, 10) == service.url


async def test_a_live_run_of_an_earlier_spawn_gets_its_own_token_back(spawner, service):
    service.adopt = "old-token"
    spawner.orm_spawner.oauth_client = SimpleNamespace(allowed_scopes=["a", "b"], description="Server at /user/ada/")
    await service.set(KEY, run="01A", state="ready", url=service.url)
    assert await spawner.start() == service.url
    assert spawner.api_token == "old-token"
    # What the Hub does right after start(); a page may ask for the state before.
    spawner.get_state()
    spawner.orm_spawner.oauth_client.allowed_scopes, spawner.orm_spawner.oauth_client.description = [], "x"
    spawner.start_polling()
    spawner.stop_polling()
    assert spawner.orm_spawner.oauth_client.allowed_scopes == ["a", "b"]
    assert spawner.orm_spawner.oauth_client.description == "Server at /user/ada/"


# ---- refusals -------------------------------------------------------------------------------------------------


def assert_told(error: Any, *words: str, reason: str) -> None:
    """In the style of the Hub that runs: below 500, a message for people, HTML that is escaped, a label."""
    assert isinstance(error, web.HTTPError)
    assert 400 <= error.status_code < 500
    for word in words:
        assert word in error.jupyterhub_message
    assert "<img" not in error.jupyterhub_html_message
    assert error.glidepath_reason == reason
    if SpawnException is not None:
        assert isinstance(error, SpawnException)
        assert (error.reason, error.message) == (reason, error.jupyterhub_message)
        assert error.message_html == error.jupyterhub_html_message
    assert error.log_message
    str(error)


async def test_wrong_options_are_refused_with_every_field(spawner, service):
    problems = [{"field": "options.cores", "message": f"must be a number; got {HTML}"}] * 2
    service.refuse_with = (422, {"code": "invalid", "title": "the options are wrong", "problems": problems}, {})
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert raised.value.status_code == 400
    assert_told(raised.value, "The options are wrong", "- cores: must be a number", reason="invalid")
    assert await spawner.poll() == 0, "the Hub must not stop what was never started"


async def test_sites_that_cannot_take_a_server_are_told_by_their_titles(spawner, service):
    problems = [{"field": "here", "message": "This machine: Gives one server at most 4 cores; you ask for 9."}]
    title = "no site can take this request"
    service.refuse_with = (409, {"code": "no_site", "title": title, "problems": problems}, {})
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert_told(raised.value, "No site can take this request", "- This machine: Gives one", reason="no_site")
    assert "here:" not in raised.value.jupyterhub_message


async def test_a_refused_start_leaves_a_live_server_alone(spawner, service):
    await service.set(KEY, run="01A", state="ready", url=service.url)
    service.refuse_with = (409, {"code": "conflict", "title": "no"}, {})
    with pytest.raises(web.HTTPError):
        await spawner.start()
    assert await spawner.poll() == 0, "None would have the Hub stop it"


async def test_a_start_that_breaks_before_it_is_asked_leaves_a_live_server_alone(spawner, service):
    await service.set(KEY, run="01A", state="ready", url=service.url)

    def broken(_spawner: Any) -> str:
        raise RuntimeError("a bug in the operator's environment")

    spawner.environment = {"X": broken}
    with pytest.raises(RuntimeError):
        await spawner.start()
    assert await spawner.poll() == 0, "None would have the Hub stop it"


async def test_a_refusal_that_passes_is_waited_for(spawner, service):
    service.refuse_with = (409, {"code": "still_stopping", "title": "still stopping"}, {"Retry-After": "1"})
    starting = asyncio.create_task(spawner.start())
    await until(lambda: len(service.bodies) >= 2)
    service.refuse_with = None
    await until(lambda: KEY in service.servers)
    await service.ready(KEY)
    assert await starting == service.url


async def test_a_service_that_stays_away_is_told_in_words(service, secret_file):
    spawner = make_spawner(service.url, secret_file, outage_patience=1)
    await service.down()
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert_told(raised.value, "does not answer", reason="unreachable")
    assert await spawner.poll() == 0
    await service.up()


async def test_a_hub_that_the_service_does_not_know_is_told_without_the_secret(service, tmp_path):
    path = tmp_path / "other.secret"
    path.write_text("another-secret")
    path.chmod(0o600)
    spawner = make_spawner(service.url, path)
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert_told(raised.value, "does not know this Hub", reason="unknown_hub")
    assert "another-secret" not in raised.value.log_message + raised.value.jupyterhub_message


async def test_a_server_that_ends_while_starting_is_told_with_its_last_lines(spawner, service):
    starting = asyncio.create_task(spawner.start())
    await until(lambda: KEY in service.servers)
    await service.end(KEY, message=f"it exited with code 3 {HTML}")
    with pytest.raises(web.HTTPError) as raised:
        await starting
    assert_told(raised.value, "It exited with code 3", "| one", reason="exited")
    assert "&lt;img" in raised.value.jupyterhub_html_message
    assert await spawner.poll() == 3


async def test_internal_ssl_is_refused_in_one_sentence(spawner):
    spawner.internal_ssl = True
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert_told(raised.value, "internal_ssl", reason="internal_ssl")


async def test_options_that_are_no_json_are_refused(spawner):
    spawner.user_options = {"upload": b"bytes"}
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert_told(raised.value, reason="options")


async def test_the_hubs_start_timeout_ends_in_words_and_not_in_an_error(service, secret_file):
    spawner = make_spawner(service.url, secret_file, start_timeout=1)
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert_told(raised.value, "not ready after", reason="timeout")
    assert await spawner.poll() is None, "the Hub now stops it"


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (asyncio.TimeoutError(), 4),
        (web.HTTPError(400), 4),
        (RuntimeError("a bug"), 5),
        (None, 0),
    ],
    ids=lambda value: repr(value),
)
async def test_only_bugs_count_as_failures_of_the_hub(spawner, service, error, counted):
    spawner.consecutive_failure_limit, spawner.user.settings["failure_count"] = 5, 4
    spawn = spawner._spawn_future = asyncio.get_running_loop().create_future()
    aborted = []

    def as_the_hub_does(ended: asyncio.Future[Any]) -> None:
        settings, failed = spawner.user.settings, ended.exception()
        if failed is None:
            settings["failure_count"] = 0
            return
        if SpawnException is None or not (isinstance(failed, web.HTTPError) and failed.status_code < 500):
            settings["failure_count"] += 1
        limit = spawner.consecutive_failure_limit
        aborted.append(bool(limit) and settings["failure_count"] >= limit)

    spawn.add_done_callback(as_the_hub_does)
    spawner.internal_ssl = True
    with pytest.raises(web.HTTPError):
        await spawner.start()
    if error is None:
        spawn.set_result(None)
    else:
        spawn.set_exception(error)
    await asyncio.sleep(0.05)
    assert not any(aborted)
    assert spawner.user.settings["failure_count"] == counted
    assert spawner.consecutive_failure_limit == 5


# ---- poll, stop, get_url --------------------------------------------------------------------------------------


async def test_unknown_is_alive(spawner, service):
    await service.down()
    assert await spawner.poll() is None
    await service.up()
    assert await spawner.poll() is None or await spawner.poll() == 0
    await until(lambda: spawner.connection().feed.silent_for_s == 0)
    assert await spawner.poll() == 0, "the service surely knows no such server"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"exit_code": 3}, 3),
        ({"exit_code": None, "signal": 9}, 137),
        ({"exit_code": None, "signal": None, "reason": "stopped"}, 0),
        ({"exit_code": None, "signal": 15, "reason": "stopped"}, 0),
        ({"exit_code": 1, "signal": None, "reason": "cancelled"}, 0),
    ],
)
async def test_an_end_is_told_by_its_status(spawner, service, end, status):
    await service.set(KEY, run="01A", state="ready")
    assert await spawner.poll() is None
    await service.end(KEY, **end)
    await until(lambda: spawner.connection().feed.view(KEY).over)
    assert await spawner.poll() == status


async def test_a_wrong_secret_after_a_restart_ends_nothing(service, tmp_path):
    path = tmp_path / "other.secret"
    path.write_text("another-secret")
    path.chmod(0o600)
    await service.set(KEY, run="01A", state="ready")
    assert await make_spawner(service.url, path).poll() is None


async def test_an_end_reaches_the_hub_at_once(spawner, service):
    await service.set(KEY, run="01A", state="ready")
    assert await spawner.poll() is None
    told = []
    spawner.start_polling()
    spawner.add_poll_callback(told.append, "ended")
    await service.end(KEY)
    await until(lambda: told, timeout_s=2)
    assert told == ["ended"]


async def test_an_end_before_anybody_listens_is_not_forgotten(spawner, service):
    await service.set(KEY, run="01A", state="ready")
    assert await spawner.poll() is None
    spawner.start_polling()
    await service.end(KEY)
    await until(lambda: spawner.connection().feed.view(KEY).over)
    assert await spawner.poll_and_notify() is None, "the Hub has nobody to tell yet"
    told = []
    spawner.add_poll_callback(told.append, "ended")
    await until(lambda: told, timeout_s=2)


async def test_an_end_is_not_told_into_a_spawn_that_is_under_way(spawner, service):
    await service.set(KEY, run="01A", state="ready")
    assert await spawner.poll() is None
    told = []
    spawner._spawn_pending = True
    spawner.start_polling()
    spawner.add_poll_callback(told.append, "ended")
    await service.end(KEY)
    await asyncio.sleep(0.4)
    assert not told
    spawner._spawn_pending = False
    await until(lambda: told, timeout_s=2)


async def test_a_stop_waits_for_the_end_and_through_an_outage(spawner, service):
    await service.set(KEY, run="01A", state="ready")
    await service.down()
    stopping = asyncio.create_task(spawner.stop())
    await asyncio.sleep(0.6)
    assert not stopping.done()
    await service.up()
    await asyncio.wait_for(stopping, 5)
    assert await spawner.poll() == 0


async def test_a_stop_that_is_refused_is_tried_again_as_the_secret_may_have_slipped(service, secret_file):
    await service.set(KEY, run="01A", state="ready")
    secret = secret_file.read_text()
    secret_file.write_text("another-secret-for-a-while")
    stopping = asyncio.create_task(make_spawner(service.url, secret_file).stop())
    await asyncio.sleep(0.6)
    assert not stopping.done(), "the Hub forgets a server whose stop raises"
    secret_file.write_text(secret)
    await asyncio.wait_for(stopping, 5)
    assert service.servers[KEY]["state"] == "ended"


async def test_a_stop_that_stays_refused_is_told_in_the_end(service, secret_file):
    secret_file.write_text("another-secret")
    with pytest.raises(Refused):
        await asyncio.wait_for(make_spawner(service.url, secret_file, stop_patience=1).stop(), 10)


async def test_deleting_a_user_has_the_service_forget_the_home_and_a_named_server_does_not(service, secret_file):
    await make_spawner(service.url, secret_file, name="lab").delete_forever()
    assert not service.asked
    await make_spawner(service.url, secret_file).delete_forever()
    assert [one for one in service.asked if one.startswith("DELETE")] == [f"DELETE /v1/hubs/hub/servers/{KEY}/home"]


async def test_a_user_who_is_deleted_while_the_service_is_away_leaves_no_home(service, secret_file):
    await service.down()
    deleting = asyncio.create_task(make_spawner(service.url, secret_file).delete_forever())
    await asyncio.sleep(0.6)
    assert not deleting.done()
    await service.up()
    await asyncio.wait_for(deleting, 5)
    assert [one for one in service.asked if one.startswith("DELETE")] == [f"DELETE /v1/hubs/hub/servers/{KEY}/home"]


async def test_get_url_waits_for_an_answer_through_the_relay(spawner, service):
    await service.set(KEY, run="01A", state="queued")
    asking = asyncio.create_task(spawner.get_url())
    await asyncio.sleep(0.3)
    assert not asking.done(), "still queued"
    service.relay_status = 503
    await service.ready(KEY)
    await asyncio.sleep(0.5)
    assert not asking.done(), "the link is cut"
    await service.down()
    await asyncio.sleep(0.5)
    assert not asking.done(), "the service is away"
    service.relay_status = 200
    await service.up()
    assert await asyncio.wait_for(asking, 10) == f"{service.url}/user/ada/"
    assert (spawner.server.proto, spawner.server.ip, spawner.server.port) == ("http", "127.0.0.1", service.port)
    assert spawner.http_timeout > 60


async def test_get_url_returns_when_the_run_has_ended_and_the_hub_need_not_wait(spawner, service):
    await service.set(KEY, run="01A", state="queued")
    asking = asyncio.create_task(spawner.get_url())
    await asyncio.sleep(0.2)
    await service.end(KEY, "cancelled")
    assert await asyncio.wait_for(asking, 5) == spawner.server.url
    assert spawner.http_timeout == 1
    starting = asyncio.create_task(spawner.start())
    await until(lambda: service.servers[KEY]["state"] == "queued")
    assert spawner.http_timeout > 60, "as the operator set it, for the next server"
    starting.cancel()


async def test_get_url_never_raises(spawner, service, monkeypatch):
    calls = []

    async def broken(self: Any) -> str | None:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("anything")
        return "http://x"

    monkeypatch.setattr(type(spawner), "_url_that_answers", broken)
    assert await asyncio.wait_for(spawner.get_url(), 10) == "http://x"


# ---- form and options -----------------------------------------------------------------------------------------


async def test_the_form_is_the_services(spawner, service):
    assert await spawner.get_options_form() == service.form_html
    assert service.bodies[0]["live_url"] is None
    spawner.live_form = True
    spawner.user_options = {"cores": 2, "other": "x"}
    await spawner.get_options_form()
    assert service.bodies[1]["live_url"] == "/services/glidepath/placement"
    assert service.bodies[1]["options"] == {"cores": "2"}


async def test_the_form_tells_how_the_last_server_ended(spawner, service):
    await service.set(KEY, run="01A", state="ready")
    assert await spawner.poll() is None
    await service.end(KEY, message=f"killed by signal 9 {HTML}")
    await until(lambda: spawner.connection().feed.view(KEY).over)
    form = await spawner.get_options_form()
    assert "Killed by signal 9" in form
    assert "one\n&lt;img" in form
    assert "<img" not in form
    assert form.endswith(service.form_html)
    await service.set(KEY, run="01B", state="ready")
    await service.end(KEY, "stopped")
    await until(lambda: spawner.connection().feed.view(KEY).end.reason == "stopped")
    assert await spawner.get_options_form() == service.form_html


async def test_a_service_that_is_looked_for_in_vain_delays_the_form_no_longer_than_a_page_may_wait(spawner):
    async def never() -> str:
        await asyncio.sleep(60)
        return ""

    spawner.connection().client._locate = never
    assert "cannot be shown" in await asyncio.wait_for(spawner.get_options_form(), 3)


async def test_without_the_service_there_is_a_plain_form(spawner, service):
    await service.down()
    form = await spawner.get_options_form()
    for name in ("cores", "memory_mb", "gpus", "walltime_min"):
        assert f'name="{name}"' in form
        assert f'for="glidepath-{name}"' in form


async def test_an_operators_own_form_wins(service, secret_file):
    spawner = make_spawner(service.url, secret_file, options_form="<p>mine</p>")
    assert await spawner.get_options_form() == "<p>mine</p>"


def test_options_from_the_form_are_what_was_filled_in(spawner):
    form = {"cores": ["2"], "memory_mb": [""], "site": ["far"], "_xsrf": ["x"], "gpus": [" 1 "], "preset": []}
    assert spawner.run_options_from_form(form) == {"cores": "2", "site": "far", "gpus": "1"}


async def test_options_are_not_called_forgotten(spawner, caplog):
    await spawner._run_apply_user_options({"cores": 1})
    assert "unhandled" not in caplog.text.lower()


# ---- progress -------------------------------------------------------------------------------------------------


async def test_progress_tells_site_queue_and_prediction_and_ends_when_ready(spawner, service):
    starting = asyncio.create_task(spawner.start())
    seen: list[dict[str, Any]] = []

    async def watch() -> None:
        async for event in spawner.progress():
            seen.append(event)

    watching = asyncio.create_task(watch())
    await until(lambda: KEY in service.servers)
    verdict = {"site": "far", "title": f"Far {HTML}", "fits": True, "chosen": True, "sentence": HTML}
    await service.set(KEY, queue_position=3, predicted_wait_s=300, message="waiting", verdicts=[verdict])
    await until(lambda: any("place 3" in event["message"] for event in seen))
    await service.ready(KEY)
    await starting
    await asyncio.wait_for(watching, 5)
    told = next(event for event in seen if "place 3" in event["message"])
    assert "expected to start in about 5 minutes" in told["message"]
    assert "Far" in told["message"]
    assert all("<img" not in event.get("html_message", "") for event in seen)
    assert all(event.get("progress", 0) < 100 for event in seen)


async def test_progress_says_that_the_service_is_away(spawner, service):
    starting = asyncio.create_task(spawner.start())
    await until(lambda: KEY in service.servers)
    await until(lambda: spawner.connection().feed.silent_for_s == 0)
    await service.down()
    seen = []

    async def watch() -> None:
        async for event in spawner.progress():
            seen.append(event["message"])

    watching = asyncio.create_task(watch())
    await until(lambda: any("not answered" in message for message in seen))
    await service.up()
    await service.end(KEY)
    await asyncio.wait_for(watching, 5)
    with pytest.raises(web.HTTPError):
        await starting


async def test_progress_never_raises(spawner, monkeypatch):
    def broken(self: Any) -> None:
        raise RuntimeError("anything")

    monkeypatch.setattr(type(spawner), "connection", broken)
    assert [event async for event in spawner.progress()]


# ---- names, and the rest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["ada@example.org", "ünïcode", "x" * 255, "a.b_c"])
async def test_odd_names_start_and_end(service, secret_file, user):
    spawner = make_spawner(service.url, secret_file, user=user, name="lab")
    starting = asyncio.create_task(spawner.start())
    await until(lambda: service.servers)
    key = spawner._key
    assert list(service.servers) == [key]
    await service.ready(key)
    assert await starting == service.url
    await spawner.stop()
    assert await spawner.poll() == 0


async def test_two_servers_of_one_user_are_two(service, secret_file):
    one, two = (make_spawner(service.url, secret_file, name=name) for name in ("", "lab"))
    starts = [asyncio.create_task(each.start()) for each in (one, two)]
    await until(lambda: len(service.servers) == 2)
    for key in list(service.servers):
        await service.ready(key)
    await asyncio.gather(*starts)
    await two.stop()
    assert await two.poll() == 0
    assert await one.poll() is None


async def test_64_spawners_share_one_stream(service, secret_file):
    spawners = [make_spawner(service.url, secret_file, user=f"user{number}") for number in range(64)]
    starts = [asyncio.create_task(each.start()) for each in spawners]
    await until(lambda: len(service.servers) == 64)
    for key in list(service.servers):
        await service.ready(key)
    await asyncio.gather(*starts)
    assert len([asked for asked in service.asked if asked.endswith("/events")]) == 1


async def test_a_live_server_is_not_renamed(spawner, service):
    await service.set(KEY, run="01A", state="ready")
    with pytest.raises(web.HTTPError, match="Stop the server"):
        await spawner.rename("", "lab")
    await service.end(KEY)
    await spawner.rename("", "lab")


async def test_a_server_is_found_without_the_state_in_the_hubs_database(spawner, service):
    await service.set(KEY, run="01A", state="ready", url=service.url)
    await spawner.start()
    assert spawner.get_state() == {"run": "01A", "user": "ada"}
    spawner.load_state({})
    assert await spawner.poll() is None


async def test_what_a_late_start_made_is_stopped_with_it(spawner, service):
    await service.set(KEY, run="01A", state="ready", url=service.url)
    await service.end(KEY)
    await spawner.connection().feed.synced(5)
    service.late_s = 1
    starting = asyncio.create_task(spawner.start())
    await until(lambda: service.bodies)
    starting.cancel()
    await asyncio.wait({starting})
    assert await spawner.poll() is None, "the last run's end says nothing of this start"
    await spawner.stop()
    assert service.servers[KEY]["run"] != "01A", "the start was taken"
    assert service.servers[KEY]["state"] == "ended"


async def test_the_name_under_which_a_server_is_asked_for_is_kept_before_it_is_asked_for(spawner, service):
    await service.set(KEY, run="01A", state="ready", url=service.url)
    kept = []
    ask = spawner._ask

    async def look(*asked):
        kept.append(spawner.orm_spawner.state)
        return await ask(*asked)

    spawner._ask = look
    await spawner.start()
    assert kept == [{"user": "ada"}]


async def test_a_start_that_was_stopped_and_then_failed_leaves_no_traceback(spawner, service):
    unheard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, what: unheard.append(what))
    service.late_s = 30
    starting = asyncio.create_task(spawner.start())
    await until(lambda: service.bodies)
    starting.cancel()
    await asyncio.wait({starting})
    asking = weakref.ref(spawner._asking)
    await service.down()
    await asyncio.wait({asking()})
    spawner._asking = None
    gc.collect()
    assert asking() is None
    assert unheard == []


async def test_a_server_of_a_renamed_user_is_still_that_server(spawner, service):
    await service.set(KEY, run="01A", state="ready", url=service.url)
    await spawner.start()
    spawner.user.name = "eve"
    assert await spawner.poll() is None
    await spawner.stop()
    assert service.servers[KEY]["state"] == "ended"
    spawner.clear_state()
    assert ".eve." in spawner._key


def test_time_limits_lie_above_what_the_service_bounds(spawner):
    assert spawner.start_timeout > 7 * 24 * 3600
    assert spawner.http_timeout > 60
