"""A real Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

NODE_MODULES = Path(__file__).parent.parent / "node" / "node_modules"
# Nothing of the browser's own is to be sent anywhere.
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*QUIET, *sandbox])
        try:
            yield browser
        finally:
            browser.close()


def node_module(name: str) -> Path:
    """A package from npm; skips where it is not installed."""
    found = NODE_MODULES / name
    if not found.exists():
        pytest.skip(f"needs {name} (npm install in tests/node)")
    return found


def errors_of(page: Any) -> list[str]:
    """What goes wrong on a page from now on: exceptions, errors on the console, requests to other places."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"exception: {error}"))
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    return found
