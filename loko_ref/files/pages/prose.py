"""Sections of the derivations as HTML, their formulas as MathML that a browser draws by itself."""

from __future__ import annotations

import re
from collections.abc import Collection

from loko_ref.errors import extras

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|(`[^`]*`)", re.DOTALL)
_LABEL = re.compile(r"\b[A-Z]{2,}-\d+\b")
_PLACE = re.compile(r"\ue000(\d+)\ue001")

_SPELLED = (
    (r"\\[lg]t(?![a-zA-Z])", lambda m: {r"\lt": "<", r"\gt": ">"}[m[0]]),
    (r"\\dots(?![a-zA-Z])", lambda m: r"\ldots"),
    (r"\\cr(?![a-zA-Z])", lambda m: r"\\"),
    (r"\\tfrac(\d)(\d)", lambda m: rf"\tfrac{{{m[1]}}}{{{m[2]}}}"),
    (r"\\mathrel\{(.)\}(.)", lambda m: f"{m[1]}{m[2]}"),
    (r"\\Big(?![a-zA-Z])", lambda m: ""),
    (r"^\^", lambda m: "{}^"),
)
"""What docutils reads otherwise than TeX does, and how it reads it."""


def mathml(formula: str, *, block: bool = False) -> str:
    """Return a formula in TeX as MathML.

    Parameters
    ----------
    formula : str
        As it stands between the dollar signs.
    block : bool
        Whether it stands on a line of its own.

    Raises
    ------
    MissingExtraError
        If docutils is not installed.
    """
    for pattern, spelled in _SPELLED:
        formula = re.sub(pattern, spelled, formula)
    convert = extras.load("docutils.utils.math.latex2mathml", "formulas in a page").tex2mathml
    text: str = convert(formula, as_block=block)
    return re.sub(r">\s+<", "><", text)


def html(body: str, known: Collection[str] = ()) -> str:
    """Return a section, in Markdown with formulas in TeX, as HTML.

    Parameters
    ----------
    known : collection of str
        Labels that become buttons, ``<button data-label="KAL-2">``.
    """
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        if found[3] is not None:
            return found[0]
        kept.append(mathml(found[1] or found[2], block=found[1] is not None))
        return f"\ue000{len(kept) - 1}\ue001"

    def link(found: re.Match[str]) -> str:
        label = found[0]
        if label not in known:
            return label
        return f'<button class="label" data-label="{label}">{label}</button>'

    markdown = extras.load("markdown_it", "the derivations in a page").MarkdownIt()
    text: str = markdown.enable("table").render(_FORMULA.sub(keep, body))
    text = _LABEL.sub(link, re.sub(r'<a href="[^"]*">(.*?)</a>', r"\1", text))
    return _PLACE.sub(lambda m: kept[int(m[1])], text)
