"""The main walk in a real browser, and that nothing which others wrote becomes part of a page. Takes the pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page

import places
from browsers import chromium, login, open_notebook
from far import Far
from house import House
from people import lost_ticks

PICTURES = places.TOP / ("docs/images" if os.environ.get("KEEP_PICTURES") else "test-results/pictures")


@pytest.fixture
def browser(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """Chromium that reaches this machine and nothing else."""
    with chromium(tmp_path / "profile", request.node.name) as context:
        yield context


def picture(page: Page, name: str, whole: bool = False) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)


def test_a_person_works_in_a_lab_behind_the_far_link(house: House, browser: BrowserContext) -> None:
    page = browser.pages[0]
    login(page, house, "ada")
    page.goto(house.url + "hub/spawn/ada")
    page.get_by_text("The far site").first.wait_for()
    page.wait_for_timeout(1500)  # the verdicts have been asked for again
    picture(page, "form", whole=True)
    page.locator('input[name="site"][value="far"], select[name="site"]').first.wait_for()
    if page.locator('select[name="site"]').count():
        page.select_option('select[name="site"]', "far")
    else:
        page.locator('input[name="site"][value="far"]').check(force=True)
    page.wait_for_timeout(800)  # the verdicts follow the choice
    picture(page, "form-far", whole=True)
    page.locator('form#spawn_form input[type="submit"], form#spawn_form button[type="submit"]').first.click()
    page.wait_for_url(lambda url: "/spawn-pending/" in url or "/user/ada/" in url, timeout=20_000)
    page.wait_for_timeout(600)
    if "/spawn-pending/" in page.url:  # it goes on by itself as soon as the server is ready
        picture(page, "progress")
    page.wait_for_url("**/user/ada/**", timeout=60_000)
    page.wait_for_selector("#jp-main-dock-panel", timeout=60_000)

    open_notebook(page)
    page.keyboard.type("print('6 x 7 =', 6 * 7)")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output", has_text="6 x 7 = 42").first.wait_for(timeout=60_000)
    news = page.get_by_role("button", name="No", exact=True)
    if news.count():
        news.first.click()
    page.wait_for_timeout(500)
    picture(page, "lab")
    assert house.service.view("ada")["site"] == "far"
    house.stopped("ada")


def test_lab_gets_the_output_of_a_cell_that_ran_while_the_service_was_dead(
    house: House, browser: BrowserContext
) -> None:
    house.started("bob", site="far")
    page = browser.pages[0]
    login(page, house, "bob")
    page.goto(house.url + "user/bob/lab?reset")
    page.wait_for_selector("#jp-main-dock-panel", timeout=60_000)
    open_notebook(page)
    page.keyboard.type("import time\nfor n in range(8): time.sleep(1); print('tick', n)")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output", has_text="tick 0").first.wait_for(timeout=60_000)
    killed = house.service.kill()
    house.service.wait_up(other_than=killed)
    page.locator(".jp-OutputArea-output", has_text="tick 7").first.wait_for(timeout=60_000)
    said = " ".join(page.locator(".jp-OutputArea-output").all_inner_texts())
    assert len(lost_ticks(said, 8)) <= 1, said  # one may have been inside the service at that moment
    house.stopped("bob")


def test_what_others_wrote_stays_text_in_the_browser(house: House, browser: BrowserContext) -> None:
    page = browser.pages[0]
    login(page, house, "stub-exits-shown")
    page.goto(house.url + "hub/spawn/stub-exits-shown")
    page.locator('form#spawn_form input[type="submit"], form#spawn_form button[type="submit"]').first.click()
    page.wait_for_load_state()
    page.get_by_text("configuration of the moon").first.wait_for(timeout=30_000)
    picture(page, "failed")
    for path in ("hub/spawn-pending/stub-exits-shown", "services/glidepath/", "hub/home"):
        page.goto(house.url + path)
        page.wait_for_timeout(700)
        assert page.title() != "666", path
        assert page.locator('img[src="x"]').count() == 0, path
    page.goto(house.url + "services/glidepath/")
    page.get_by_text("configuration of the moon").first.wait_for()
    picture(page, "servers")


def test_the_form_works_by_keyboard_and_names_every_field(house: House, browser: BrowserContext) -> None:
    page = browser.pages[0]
    login(page, house, "bob")
    page.goto(house.url + "hub/spawn/bob")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#spawn_form input, #spawn_form select')]
            .filter(field => !['hidden', 'submit'].includes(field.type))
            .filter(field => !(field.labels && field.labels.length) && !field.getAttribute('aria-label')
                && !field.getAttribute('aria-labelledby'))
            .map(field => field.name)"""
    )
    assert nameless == []
    reached = set()
    page.locator("#spawn_form").first.click(position={"x": 1, "y": 1})
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement && document.activeElement.name"))
    assert {"site", "cores", "memory_mb"} <= reached, reached


def test_the_verdicts_follow_the_choice_and_the_form_is_filled_in_and_sent_by_keyboard(
    house: House, browser: BrowserContext
) -> None:
    page = browser.pages[0]
    login(page, house, "bob")
    page.goto(house.url + "hub/spawn/bob")
    verdict = page.locator('#gp-rank li[data-site="far"] .gp-hint')
    first = verdict.inner_text()
    tab_to(page, "cores")
    page.keyboard.type("1000")
    becomes(page, lambda: verdict.inner_text() != first and "core" in verdict.inner_text())
    page.keyboard.press("Control+A")
    page.keyboard.type("1")
    becomes(page, lambda: verdict.inner_text() == first)
    tab_to(page, "site")
    for _ in range(6):
        if page.evaluate("document.activeElement.value") == "far":
            break
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/spawn-pending/" in url or "/user/bob/" in url, timeout=20_000)
    house.wait_ready("bob")
    assert house.service.view("bob")["site"] == "far"
    house.stopped("bob")


def tab_to(page: Page, field: str) -> None:
    for _ in range(60):
        if page.evaluate("document.activeElement && document.activeElement.name") == field:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{field} was not reached by the keyboard")


def becomes(page: Page, true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.locator("#gp-rank").inner_text())


def test_the_form_works_without_javascript(house: House) -> None:
    """What the page holds before any script ran is enough to choose and to send."""
    bob = house.person("bob")
    bob.login()
    form = bob.form()
    for name in ("site", "cores", "memory_mb", "walltime_min"):
        assert f'name="{name}"' in form, name
    bob.choose(site="far", cores=1)
    assert bob.progress()[-1].get("ready")
    house.stopped("bob")


@pytest.fixture(autouse=True)
def _cable(far: Far) -> Iterator[None]:
    yield
    far.restore()
