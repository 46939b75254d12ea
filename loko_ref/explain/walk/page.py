"""One self-contained page: the walk's data, its drawing, and the derivations that it cites."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from loko_ref.errors import extras
from loko_ref.files.derivations import derivations
from loko_ref.files.pages.prose import html

__all__ = ["as_html", "check_needs", "packed"]


def check_needs() -> None:
    """Raise unless the packages that a page needs can be imported.

    Raises
    ------
    MissingExtraError
        If one is missing.
    """
    for module in ("jinja2", "markdown_it", "docutils.utils.math.latex2mathml"):
        extras.load(module, "the page of a walk")


def _text(name: str) -> str:
    return files("loko_ref.explain.walk").joinpath(name).read_text(encoding="utf-8")


def packed(content: object) -> str:
    """Return JSON as a page carries it: nothing in it ends a script."""
    data = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return data.replace("<", "\\u003c")


def as_html(
    document: Mapping[str, Any], labels: Iterable[str], scripts: Iterable[str] = ("walk.js",)
) -> str:
    """Return the page.

    Parameters
    ----------
    document : mapping
        ``title`` and ``about`` for its head; all of it for its scripts.
    labels : iterable of str
        Of the derivations that open beside a quantity.
    scripts : iterable of str
        Files of this package, after those that all pages share.
    """
    check_needs()
    jinja2 = extras.load("jinja2", "the page of a walk")
    known = derivations()
    cited = [label for label in known if label in set(labels)]
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        _text("page.html.jinja")
    )
    safe = jinja2.utils.markupsafe.Markup
    text: str = template.render(
        title=document["title"],
        about=document["about"],
        style=safe(_text("page.css")),
        script=safe("\n".join(map(_text, ("draw.js", *scripts)))),
        data=safe(packed(document)),
        derivations=[
            (label, known[label].title, safe(html(known[label].text, cited))) for label in cited
        ],
    )
    return text
