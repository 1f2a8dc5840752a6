"""A headless Chromium for tests of pages: opens a file, tells what the browser complains of, presses keys."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
REMEDY = "no Chromium is here: apt-get install chromium, and pip install 'bitpress[dev]' for what drives it"
PATIENCE = 120_000  # milliseconds that a busy machine may take for one step


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright. Without one the test is skipped, or fails where CI is set: there it must be present."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(REMEDY)
    with sync_playwright() as library:
        # no sandbox: it needs rights that a container lacks, and the page is our own
        browser = library.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, file: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Any, list[str]]]:
    """(page, complaints): console messages, errors, and requests for anything but the file itself."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    own = (file.resolve().as_uri(), "data:")
    page.on("request", lambda r: None if r.url.startswith(own) else said.append(f"request: {r.url}"))
    page.goto(own[0])
    try:
        yield page, said
    finally:
        page.close()
