"""The documentation: built without a warning and without the network, and looked at in Chromium."""

import contextlib
import functools
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest
import sampling
from hypothesis import Phase, settings

from loko_ref import strategies

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "derivations" / "site"
pytestmark = pytest.mark.timeout(1200)  # the first that looks at the site builds it

COMMAND = "python derivations/site/build.py OUT"

SAMPLE = (
    "index",
    "verify",
    "features",
    "labels",
    "compared_online",
    "compared_lte",
    "derivations/kalman",
    "derivations/fast",
    "operations/loko.step",
    "operations/index",
    "cases/lora.delta-tiny",
    "mistakes/index",
    "mistakes/S-R-DIAGONAL",
    "commands/verify",
    "api/loko_ref.loko",
    "api/loko_ref.conformance",
    "examples/record_trace.py",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build it, with a proxy that answers nothing; or take the one that LOKO_REF_SITE names."""
    if "LOKO_REF_SITE" in os.environ:
        return Path(os.environ["LOKO_REF_SITE"])
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs the extra [docs]")
    out = tmp_path_factory.mktemp("site") / "out"
    words = [str(out) if word == "OUT" else word for word in COMMAND.split()]
    words += [] if sampling.LONG else ["--quick"]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=ROOT,
        env={**os.environ, **nowhere, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return out


class Links(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, file):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "a":
            self.loads += [values[key] for key in ("src", "href") if values.get(key)]


@pytest.mark.parametrize(
    "package",
    ["sphinx", None, *(pytest.param(n, marks=pytest.mark.larger) for n in ("furo", "hypothesis"))],
)
def test_a_missing_extra_is_the_first_thing_that_the_builder_says(package, tmp_path):
    """One line that names what to install, and nothing is written; without loko_ref itself too."""
    blocked = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['build.py', 'out']"
    run = f"import runpy; runpy.run_path({str(SITE / 'build.py')!r}, run_name='__main__')"
    words = ["-c", f"{blocked}; {run}"] if package else ["-S", SITE / "build.py", "out"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.fullmatch(r"build\.py: [^\n]*pip install [^\n]*\[docs\]'\n", done.stderr), done.stderr
    assert not any(tmp_path.iterdir())


def test_the_one_command_stands_in_readme_and_in_the_builder():
    assert f"`{COMMAND}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert COMMAND in (SITE / "build.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["walk", pytest.param("report", marks=pytest.mark.larger)])
def test_a_picture_in_readme_shows_the_page_as_it_is_now(name, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    monkeypatch.syspath_prepend(str(SITE))
    pictures = importlib.import_module("pictures")
    with image.open(SITE.parent / f"{name}.png") as picture:
        said = picture.text[pictures.KEY]
    page = pictures.walk(1) if name == "walk" else pictures.report()
    assert said == pictures.shows(page), "python derivations/site/pictures.py makes it anew"


def test_the_test_to_copy_finds_the_mistake_shown_and_passes_without_it():
    """What stands on the page, and in the module's docstring, run on that page's filter."""
    words = (SITE / "property_tests.md").read_text(encoding="utf-8")
    wrong = re.search(r"^```python file=wrong\.py\n(.*?)^```", words, re.DOTALL | re.MULTILINE)[1]
    test = re.findall(r"^```python\n(.*?)^```", words, re.DOTALL | re.MULTILINE)[-1]
    assert re.sub(r"\s+", " ", test) in re.sub(r"\s+", " ", strategies.__doc__)
    draw = [Phase.generate]  # without making a failure small
    profile = settings(max_examples=20, derandomize=True, database=None, phases=draw)
    settings.register_profile("of the documentation", profile)
    before = settings.get_current_profile_name()
    settings.load_profile("of the documentation")
    try:
        for text, fails in ((wrong, True), (wrong.replace("K, H)}", "K, H) * p}"), False)):
            names = {}
            exec(text, names)
            names["my_update"] = names["diagonal_update"]
            exec(test, names)
            with pytest.raises(AssertionError) if fails else contextlib.nullcontext():
                names["test_variances_shrink"]()
    finally:
        settings.load_profile(before)


def test_links_of_the_written_pages_to_derivations_lead_to_files():
    """Those that resolve where the sources are read as they are."""
    for file in SITE.glob("*.md"):
        for link in re.findall(r"\]\((\.\./[^)#]+)\)", file.read_text(encoding="utf-8")):
            assert (SITE / link).exists(), f"{file.name}: {link}"


@pytest.mark.larger
def test_every_link_of_the_site_leads_somewhere(site):
    pages = {file.resolve(): Links(file) for file in site.rglob("*.html")}
    assert len(pages) > 600
    broken = []
    exists = functools.cache(Path.exists)
    resolved = functools.cache(lambda folder, path: (folder / unquote(path)).resolve())
    for file, page in pages.items():
        for target in page.loads:
            there = urlsplit(target)
            assert not (there.scheme or there.netloc) or there.scheme == "data", (file, target)
            assert not there.path or exists(resolved(file.parent, there.path)), (file, target)
        for target in page.links:
            there = urlsplit(target)
            if there.scheme or there.netloc:
                continue
            other = resolved(file.parent, there.path) if there.path else file
            place = unquote(there.fragment)
            found = other in pages or (other.is_file() and not place)
            if not found or (place and place not in pages[other].anchors):
                broken.append((file.name, target))
    assert not broken


@pytest.mark.larger
def test_styles_load_nothing_from_elsewhere(site):
    for file in (site / "_static").rglob("*.css"):
        for target in re.findall(r"url\(([^)]+)\)|@import ([^;]+)", file.read_text("utf-8")):
            assert not re.match(r"[\"']?(https?:)?//", "".join(target)), (file, target)


@pytest.mark.larger
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_pages_ask_for_nothing_and_can_be_read_by_all(site, chromium, width, dark):
    faults = {}
    for name in sampling.sample(SAMPLE, 0.13, name=str):
        with browser.opened(chromium, site / f"{name}.html", width=width, dark=dark) as page:
            found = [*page.faults, *(["wider than its window"] if page.overflows() else [])]
            faults[name] = found + page.violations()  # axe itself asks for files, in vain
    assert not {name: found for name, found in faults.items() if found}


@pytest.mark.larger
@pytest.mark.sampled(0.34)
@pytest.mark.parametrize(
    ("words", "hit"),
    [
        ("Joseph form", "derivations/kalman.html"),
        ("SCALE-ALPHA", "mistakes/SCALE-ALPHA.html"),
        ("xfail", "ci.html"),
        ("diagonal_update", "operations/kalman.diagonal_update.html"),
    ],
)
def test_the_search_finds_from_a_file(site, chromium, words, hit):
    with browser.opened(chromium, site / "index.html") as page:
        page.tab.fill("input[name=q]", words)
        page.tab.press("input[name=q]", "Enter")
        page.tab.wait_for_selector("#search-results li a")
        page.tab.wait_for_selector(f'#search-results a[href*="{hit}"]')
        assert page.faults == []
        assert page.violations() == []
