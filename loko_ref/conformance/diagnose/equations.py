"""Formulas in the catalogue's letters."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from loko_ref.conformance.diagnose.search.candidates import Candidate
from loko_ref.conformance.diagnose.search.instrument import RESULT, WRITTEN, instrument
from loko_ref.conformance.diagnose.search.sites import Site
from loko_ref.textbook.filter import FORMS
from loko_ref.textbook.loko import choices, dataflow, delta, merge, noise, precision_update
from loko_ref.textbook.optimizers import METHODS
from loko_ref.textbook.quantities import Quantity

__all__ = ["equation", "letters"]

_WORDS = (
    (r"v\.F\['(\w+(?:\.\w+)?)'\]\(([^()]*)\)", r"\1"),
    (r"v\.(?:slot|new)\['(\w+)'\]", r"\1"),
    (r"\bv\.", ""),
    (r"\bw\['(\w+)'\]", r"\1"),
    (r"\[(?:\.\.\.|:|None|, )+\]", ""),
    (r"\bnp\.linalg\.|\bnp\.|\bmath\.", ""),
    (r"\.T\b", "'"),
    (r" @ ", " "),
    (r" \*\* ", "^"),
    (r" \* ", " "),
    (r"\bpHt\b", "P H'"),
    (r"\b(\w+)_post\b", r"\1+"),
)


def letters(text: str) -> str:
    """Write a source expression in the catalogue's letters.

    Examples
    --------
    >>> letters("v.p_pred[:, None] * v.H.T")
    "p_pred H'"
    """
    for old, new in _WORDS:
        text = re.sub(old, new, text)
    return text


def _placed(site: Site) -> str:
    """Return an expression in letters; of an index that is written out, with what it is of."""
    texts = [place.text for place in instrument(WRITTEN[site.call.inner]).places]
    of = [text for text in texts if text.endswith(f"[{site.text}]")]
    if site.place == RESULT or not re.fullmatch(r"-?\d+", site.text) or not of:
        return letters(site.text)
    return f"the index {site.text} of {letters(min(of, key=len))}"


def _outside(text: str) -> str:
    """Return what of an expression stands in no brackets."""
    inside = re.compile(r"\([^()]*\)|\[[^][]*\]")
    while inside.search(text):
        text = inside.sub("", text)
    return text


@cache
def _by_formula() -> dict[str, Quantity]:
    flows = [*(dataflow(o) for o in choices()), delta(), merge(), *METHODS.values()]
    precise = {"lam": 0.5, "q": 1.0}
    flows += [precision_update(precise), precision_update({**precise, "blocks": []})]
    flows += [noise({"noise": o["noise"]}) for o in choices() if o["observation"] != "glm"]
    found: dict[str, Quantity] = {}
    for flow in flows:
        for q in flow:
            found.setdefault(q.formula, q)
    return found


def equation(quantity: str, one: Candidate) -> str:
    """Write what a quantity is by a formula: the right equation and what differs.

    Parameters
    ----------
    quantity : str
        The output.
    one : Candidate
        The formula.
    """
    if one.mutant is not None:
        return one.text
    parts = []
    for site, edit in one.edits:
        what = _placed(site)
        if site.place == RESULT:
            known = _by_formula().get(edit.inner)
            what = known.equation if known else what
        if re.search(r" [-+*/] | [A-Z\w']+$", _outside(what)):
            what = f"({what})"
        within = (
            f" within {edit.inner}"
            if edit.inner not in (edit.root, *FORMS) and site.place != RESULT
            else ""
        )
        parts.append(letters(edit.change.text.replace("{x}", what) + within))
    parts = list(dict.fromkeys(parts))  # a name that stands twice is replaced twice
    first = one.edits[0][1]
    named, form = _by_formula().get(first.root), FORMS.get(first.inner)
    if named is not None and form is not None:
        named = replace(named, equation=form[2])
    inside = all(
        edit.place == RESULT and edit.inner in (edit.root, *FORMS) for _, edit in one.edits
    )
    if named is None:
        text = f"{quantity}: in {first.root}, {', and '.join(parts)}"
    else:
        own = named.name.removesuffix("_post")
        own = quantity if own.lower() == quantity.lower() else own
        lead = "" if own == quantity else f"{quantity}: "
        text = f"{lead}{own} = {named.equation}: {', and '.join(parts)}"
        if inside and len(parts) == 1:
            text = f"{lead}{own} = {parts[0]}"
    if one.scope:
        values = " or ".join(sorted(map(str, one.scope[1])))
        text += f" (where {one.scope[0]} is {values})"
    return text
