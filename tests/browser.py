"""A real browser without a window, for pages that a person opens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SECONDS_LIMIT = 60.0
HERE = ("127.0.0.1", "localhost", "::1")


@dataclass
class Opened:
    """A page in a browser, and what it did since it was opened.

    Attributes:
        page: playwright's page, to find and click things.
        errors: the console's errors, and exceptions that the page's scripts did not catch.
        requests: the address of everything the page asked for, its own first.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def leaving(self) -> list[str]:
        """Requests to anywhere but this machine; what is inside the page itself (`data:`, `blob:`) asks nobody."""
        return [
            address
            for address in self.requests
            if (parts := urlparse(address)).scheme not in ("file", "data", "blob", "about")
            and parts.hostname not in HERE
        ]

    def text(self) -> str:
        """What a person can read on the page."""
        return self.page.inner_text("body")

    def wait_for(self, text: str) -> None:
        """Wait until some text can be seen."""
        self.page.get_by_text(text).first.wait_for()

    def follow(self, link: str) -> Opened:
        """Follow a link that opens a window of its own; what that does is recorded here too."""
        with self.page.context.expect_page() as waiting:
            self.page.get_by_role("link", name=link).first.click()
        return Opened(waiting.value, self.errors, self.requests)

    def screenshot(self, file: Path, *, full: bool = False) -> None:
        """Keep a PNG of what is in the window, or of the whole page."""
        self.page.screenshot(path=file, full_page=full)


def browser_program() -> str:
    """The browser's program; where there is none, or nothing to drive it, the test is skipped with a word."""
    pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser: pip install -e '.[dev]'")
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(PROGRAMS)} is installed (Debian: apt-get install chromium)")
    return found


@contextmanager
def open_page(url: str, *, width: int = 1440, height: int = 900) -> Iterator[Opened]:
    """Open an address, a file's included (`Path.as_uri()`), in a window of so many pixels.

    Skips the test where there is no browser.
    """
    program = browser_program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            window = browser.new_context(viewport={"width": width, "height": height})
            window.set_default_timeout(1000 * SECONDS_LIMIT)
            opened = Opened(window.new_page())
            window.on("console", lambda line: opened.errors.append(line.text) if line.type == "error" else None)
            window.on("weberror", lambda error: opened.errors.append(str(error.error)))
            window.on("request", lambda request: opened.requests.append(request.url))
            opened.page.goto(url)
            yield opened
        finally:
            browser.close()
