"""Pages in headless Chromium: what they ask of the network, print and offend against."""

import contextlib
import functools
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")


@functools.cache
def program():
    """Return the path of Chromium: ``LOKO_REF_CHROMIUM``, or the first found by name."""
    named = os.environ.get("LOKO_REF_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def running():
    """Start Chromium; skip, with the reason, where it or playwright is not there."""
    found = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    pytest.importorskip("axe_playwright_python", reason="needs the extra [browser]")
    if program() is None:
        pytest.skip(f"needs Chromium: none of {', '.join(NAMES)} is on the path")
    with found.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program(), args=list(FLAGS))
        yield started
        started.close()


@dataclass
class Page:
    """One open page; `faults`: requests to anything but files, errors, uncaught exceptions."""

    tab: Any
    faults: list[str] = field(default_factory=list)

    def violations(self):
        """Return what axe-core finds in the page as it is now: rule, and the elements."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.tab).response["violations"]
        return [f"{v['id']}: {[n['target'] for n in v['nodes']][:5]}" for v in found]

    def overflows(self):
        """Return whether the page is wider than its window."""
        return self.tab.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )


@contextlib.contextmanager
def opened(started, path, *, width=1280, dark=False):
    """Open a file in a fresh window."""
    scheme = "dark" if dark else "light"
    context = started.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    page = Page(context.new_page())

    def heard(request):
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            page.faults.append(f"request: {request.url}")

    page.tab.on("request", heard)
    page.tab.on("pageerror", lambda error: page.faults.append(f"exception: {error}"))
    page.tab.on(
        "console",
        lambda m: page.faults.append(f"console: {m.text}") if m.type == "error" else None,
    )
    page.tab.goto(Path(path).resolve().as_uri())
    yield page
    context.close()
