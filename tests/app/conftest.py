"""A tiny model with a reference set; one server and one Chromium for all tests of the page."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_inputs import ASKED, radiograph

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def reference(weights):
    """Of the tiny model, on 12 images; "mass" has a calibration, which is no better than a constant."""
    from carzero.zeroshot.calibration import Calibration
    from carzero.zeroshot.classify import ZeroShotClassifier
    from carzero.zeroshot.reference import ScoreReference

    classifier = ZeroShotClassifier(weights, ASKED)
    table = classifier.predict([radiograph(seed) for seed in range(12)])
    mass = Calibration("platt", ((-1.0, 2.0),), 40, 10, 40, brier=0.2, brier_constant=0.1875, error=0.1)
    return ScoreReference.of(classifier, table, {"mass": mass})


@pytest.fixture(scope="session")
def desk(weights, reference):
    from carzero.app.desk import Desk
    from carzero.models.checkpoint import load

    return Desk(load(weights), reference)


class Calls:
    """Hosts that this process connects to or looks up while it is on."""

    def __init__(self) -> None:
        self.on, self.hosts = True, set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.on and event == "socket.connect" and isinstance(args[1], tuple):
            self.hosts.add(args[1][0])
        if self.on and event == "socket.getaddrinfo":
            self.hosts.add(args[0])


@pytest.fixture(scope="session")
def calls() -> Iterator[Calls]:
    heard = Calls()
    yield heard
    heard.on = False


@pytest.fixture(scope="session")
def served(desk, calls):
    """The page on a free port of this machine."""
    pytest.importorskip("gradio", reason="browser: gradio is not installed: pip install 'carzero[app]'")
    from carzero.app.server import serve

    running = serve(desk, port=0)
    yield running
    folder = Path(running.folder.name)
    running.close()
    assert not folder.exists()


@pytest.fixture(scope="module")
def chromium():
    """Closed with its module: while it is open its thread has a running event loop, and nothing else may run one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="browser: the package playwright is not installed")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"browser: there is no {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def requests() -> list[str]:
    """Addresses that any page of the session asked for."""
    return []


@pytest.fixture
def open_page(chromium, served, requests):
    """``open_page(width, height)``: the page in a window of its own, ready."""
    contexts = []

    def opened(width: int = 1366, height: int = 768, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(served.url)
        page.wait_for_selector("#cz-classify")
        page.wait_for_selector("#cz-rows .cz-key")
        page.wait_for_selector("#cz-picture .cz-blank")
        return page

    yield opened
    for context in contexts:
        context.close()
