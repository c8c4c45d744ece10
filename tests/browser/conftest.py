"""One headless Chromium for all tests of a page; its absence fails them, it skips nothing."""

import shutil

import pytest
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="module")
def chromium():
    """The system's Chromium; `make test` installs it where it may.

    Not for longer: while playwright runs, no other test of this process can run an event loop.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no chromium on the PATH: install it (Debian: apt-get install chromium)"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A fresh window that fails the test where the page made errors beyond a dead server's."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    window = context.new_page()
    window.set_default_timeout(20_000)
    errors = []
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on(
        "console",
        lambda line: (
            errors.append(line.text)
            if line.type == "error" and "Failed to load resource" not in line.text
            else None
        ),
    )
    yield window
    context.close()
    assert not errors
