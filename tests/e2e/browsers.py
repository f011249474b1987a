"""Chromium as a person has it before them: it reaches this machine and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, Route, sync_playwright

import places
from house import PASSWORD, House

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium(profile: Path, picture: str) -> Iterator[BrowserContext]:
    """A browser with this folder for what it keeps. What was on the screen at the end is kept as a picture of that
    name: a test that failed is understood at once."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=places.chromium(),
            headless=True,
            viewport={"width": 1280, "height": 800},
            args=FLAGS,
        )
        context.route("**/*", stay_here)
        context.set_default_timeout(30_000)
        yield context
        context.pages[0].screenshot(path=places.TOP / "test-results" / "screens" / f"{picture}.png")
        context.close()


def stay_here(route: Route) -> None:
    address = urlsplit(route.request.url)
    if address.scheme.startswith("http") and address.hostname != "127.0.0.1":
        route.abort()
    else:
        route.continue_()


def login(page: Page, house: House, user: str) -> None:
    page.goto(house.url + "hub/login")
    page.fill("#username_input", user)
    page.fill("#password_input", PASSWORD)
    page.click("#login_submit")
    page.wait_for_url(lambda url: "/hub/login" not in url)


def open_notebook(page: Page) -> None:
    """A new one, with a kernel that listens: Lab drops what is run before that."""
    page.locator('.jp-LauncherCard[data-category="Notebook"]').first.click()
    page.get_by_text("| Idle").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook .cm-content").first.click()
