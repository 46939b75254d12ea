"""HTML pages: one style, one frame with the switch of light and dark, no request.

A page is a Jinja template beside the module that fills it; it extends ``base.html.jinja`` of this
folder, which has the blocks ``title``, ``tools`` (in the bar at the top) and ``body``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from loko_ref.errors import extras

__all__ = ["own", "render"]

HERE = "loko_ref.files.pages"


def own(name: str, package: str = HERE) -> str:
    """Return the text of a data file of the package: a style, a script or a template."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def render(
    package: str,
    template: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    *,
    why: str = "an HTML page",
    **values: Any,
) -> str:
    """Fill a template; what goes in is escaped, unless it is marked safe.

    Parameters
    ----------
    package : str
        Dotted name of the package that holds template, styles and scripts.
    styles, scripts : sequence of str
        File names of what the page has beside the common style and the switch of light and dark.
        Only these scripts run: the page's policy names their hashes.
    why : str
        What is to be written, for the error where jinja2 is missing.
    **values
        What the template names.

    Raises
    ------
    MissingExtraError
        If jinja2 is not installed.
    """
    jinja2 = extras.load("jinja2", why)
    shared = ("base.html.jinja",)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: own(name, HERE if name in shared else package)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    code = [own("theme.js"), *(own(name, package) for name in scripts)]
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code)
    page: str = environment.get_template(template).render(
        styles=[own("style.css"), *(own(name, package) for name in styles)],
        scripts=code,
        allowed=" ".join(f"'sha256-{value}'" for value in hashes),
        **values,
    )
    return page
