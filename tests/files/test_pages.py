"""The frame of every page: self-contained, only its own scripts run, light and dark."""

import re
import sys
from base64 import b64encode
from hashlib import sha256

import browser
import pytest

from loko_ref.errors import MissingExtraError
from loko_ref.files import pages


def framed(tmp_path, monkeypatch, body, **values):
    """Write a page of this template."""
    own = pages.own
    template = '{% extends "base.html.jinja" %}{% block title %}A page{% endblock %}'
    template += f"{{% block body %}}<main>{body}</main>{{% endblock %}}"
    found = {"page.html.jinja": template, "mine.js": "document.title = 'ran';"}
    monkeypatch.setattr(pages, "own", lambda n, package=pages.HERE: found.get(n) or own(n, package))
    file = tmp_path / "page.html"
    file.write_text(pages.render("x", "page.html.jinja", scripts=["mine.js"], **values), "utf-8")
    return file


def test_what_goes_in_is_escaped_and_every_script_is_named_by_its_hash(tmp_path, monkeypatch):
    source = framed(tmp_path, monkeypatch, "{{ x }}", x="<script>1</script>").read_text("utf-8")
    assert "&lt;script&gt;1" in source
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', source)
    allowed = policy.partition("script-src ")[2].split()
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in scripts]
    assert allowed == [f"'sha256-{value}'" for value in hashes]
    assert len(allowed) == 2
    assert "default-src 'none'" in policy
    assert not re.search(r"https?://|\bsrc=|@import|url\(", source)


def test_jinja2_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"the walk.*loko-ref\[cli\]"):
        pages.render("x", "y", why="the walk")


@pytest.mark.larger
def test_in_the_browser_only_its_own_scripts_run_and_the_scheme_is_switched(
    chromium, tmp_path, monkeypatch
):
    body = "<h2>Two</h2><p class=wrong>w <a href=#x>a</a></p>"
    body += "<script>document.title = 'bad'</script>"
    file = framed(tmp_path, monkeypatch, body)
    for dark in (False, True):
        with browser.opened(chromium, file, width=400, dark=dark) as page:
            assert page.tab.title() == "ran"
            assert [fault[:7] for fault in page.faults] == ["console"]  # the script was refused
            button = page.tab.get_by_role("button", name="Switch between light and dark")
            ground = "getComputedStyle(document.body).backgroundColor"
            before = page.tab.evaluate(ground)
            assert button.text_content() == ("Light" if dark else "Dark")
            assert page.violations() == []
            page.tab.keyboard.press("Tab")
            page.tab.keyboard.press("Enter")
            assert page.tab.evaluate(ground) != before
            assert button.text_content() == ("Dark" if dark else "Light")
            assert page.violations() == []
            assert not page.overflows()
