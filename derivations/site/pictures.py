"""Make README's pictures anew, of a report and of the walk: needs ``[browser]`` and Chromium.

    python derivations/site/pictures.py

Each carries a text of what it shows, which tests/test_site.py holds against the page as it is now.
"""

import html
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEY = "Description"
"""Of the text in a picture's file."""


def shows(page: str) -> str:
    """Return what a page shows: title, sentence and filters of a walk, headings of a report."""
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page)
    if data is None:
        headings = re.findall(r"<h[12][^>]*>(.*?)</h", page, re.DOTALL)
        return "; ".join(html.unescape(re.sub(r"<.*?>", "", one)).strip() for one in headings)
    found = json.loads(data[1])
    return "; ".join([found["title"], found["about"], *(one["name"] for one in found["walks"])])


def walk(steps: int = 12) -> str:
    """Return the page of two parameters."""
    from loko_ref.explain.walk import of_tiny

    return of_tiny(steps)


def report() -> str:
    """Return the report on an implementation with a mistake."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        words = ["verify", "examples/my_buggy_loko.py", "--only", "model", "--dtype", "float64"]
        command = [sys.executable, "-m", "loko_ref", *words, "--html", str(file)]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False, timeout=300)
        return file.read_text(encoding="utf-8")


def _at_a_step(tab: Any) -> None:
    tab.focus("#step")
    for _ in range(2):
        tab.keyboard.press("ArrowRight")
    tab.click("#flow [data-key=S]")


PICTURES = {"walk": (walk, 1240, 790, _at_a_step), "report": (report, 1040, 760, lambda tab: None)}
"""Name -> page, width, height, what is done before."""


def main() -> None:
    """Make both."""
    from PIL import Image, PngImagePlugin
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (made, width, height, prepare) in PICTURES.items():
            file = Path(folder) / f"{name}.html"
            file.write_text(made(), encoding="utf-8")
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(file.as_uri())
            prepare(tab)
            image = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            text = PngImagePlugin.PngInfo()
            text.add_text(KEY, shows(file.read_text(encoding="utf-8")))
            small = image.quantize(128, dither=Image.Dither.NONE)
            small.save(HERE.parent / f"{name}.png", optimize=True, pnginfo=text)
        browser.close()


if __name__ == "__main__":
    main()
