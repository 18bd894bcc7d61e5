"""A real Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

NODE_MODULES = Path(__file__).parent.parent / "node" / "node_modules"
# The browser sends nothing anywhere on its own.
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips the test if Chromium is missing."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    # The machine may be busy.
    expect.set_options(timeout=60_000)
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*QUIET, *sandbox])
        try:
            yield browser
        finally:
            browser.close()


def node_module(name: str) -> Path:
    """The directory of an npm package; skips the test if it is not installed."""
    directory = NODE_MODULES / name
    if not directory.exists():
        pytest.skip(f"needs {name} (npm install in tests/node)")
    return directory


def errors_of(page: Any) -> list[str]:
    """A list that collects a page's exceptions and console errors from now on."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"exception: {error}"))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    return errors
