"""Formulas in the catalogue's letters."""

from __future__ import annotations

import ast
import re
from collections.abc import Set
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
    (r"v\.(?:slot|new)\['(\w+)'\]", r"\1"),
    (r"\bv\.", ""),
    (r"\bw\['(\w+)'\]", r"\1"),
    (r"\bpHt\b", "P H'"),
    (r"\b(\w+)_post\b", r"\1+"),
)

_SUM, _QUOTIENT, _SIGN, _PRODUCT, _POWER, _ATOM = range(6)
"""How tightly an expression is bound."""

_OPERATORS = {
    ast.Add: ("{a} + {b}", _SUM, _SUM, _SUM),
    ast.Sub: ("{a} - {b}", _SUM, _SUM, _QUOTIENT),
    ast.Mult: ("{a} {b}", _PRODUCT, _SIGN, _PRODUCT),
    ast.MatMult: ("{a} {b}", _PRODUCT, _SIGN, _PRODUCT),
    ast.BitAnd: ("{a} & {b}", _SUM, _QUOTIENT, _QUOTIENT),
    ast.Div: ("{a} / {b}", _QUOTIENT, _QUOTIENT, _POWER),
    ast.Pow: ("{a}^{b}", _POWER, _ATOM, _ATOM),
}
"""By operator: how it is written, how tightly that is bound, and how tightly its operands."""


_COMPARED = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.Gt: ">", ast.LtE: "<=", ast.GtE: ">="}


def _is_matrix(node: ast.expr) -> bool:
    """Return whether an expression is a matrix by its letters: H, K', a product of matrices."""
    if isinstance(node, ast.Attribute):
        return node.attr == "T" or node.attr[:1].isupper()
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Name) and node.id[:1].isupper()


def _bound(node: ast.expr, least: int) -> str:
    text, own = _written(node)
    return text if own >= least else f"({text})"


def _call(node: ast.Call) -> tuple[str, int]:
    name = ast.unparse(node.func)
    first = node.args[0] if node.args else None
    if (known := re.fullmatch(r"(?:v\.)?F\['(.*)'\]", name)) is not None:
        return ("P H'", _PRODUCT) if known[1] == "pHt" else (known[1], _ATOM)
    if name.endswith(".get") and isinstance(first, ast.Constant):
        return str(first.value), _ATOM
    if name == "np.swapaxes" and [ast.unparse(one) for one in node.args[1:]] == ["-1", "-2"]:
        return f"{_bound(node.args[0], _ATOM)}'", _ATOM
    if name == "inner(v.keep)":
        return _written(node.args[1])
    if name in ("keep", "v.keep") and len(node.args) == 2:  # what a formula names on its way
        if isinstance(first, ast.Constant):
            return str(first.value), _PRODUCT if " " in str(first.value) else _ATOM
        return _written(node.args[1])
    if isinstance(node.func, ast.Attribute) and not re.match(r"(np|math|scipy)\b", name):
        name = f"{_bound(node.func.value, _ATOM)}.{node.func.attr}"
    arguments = [_written(one)[0] for one in node.args]
    arguments += [f"{one.arg}={_written(one.value)[0]}" for one in node.keywords]
    name = re.sub(r"^(?:np|math|scipy)[.](?:linalg[.]|special[.])?", "", name)
    return f"{name}({', '.join(arguments)})", _ATOM


def _written(node: ast.expr) -> tuple[str, int]:
    """Write an expression; how tightly it is bound."""
    match node:
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            form, own, *parts = _OPERATORS[type(op)]
            if isinstance(op, ast.Mult) and ast.dump(node.left) == ast.dump(node.right):
                return f"{_bound(node.left, _ATOM)}^2", _POWER
            if isinstance(op, ast.Mult) and _is_matrix(node.left) and _is_matrix(node.right):
                form = "{a} o {b}"
            a, b = (_bound(x, p) for x, p in zip((node.left, node.right), parts, strict=True))
            return form.format(a=a, b=b), own
        case ast.UnaryOp(op=ast.USub()):
            return f"-{_bound(node.operand, _PRODUCT)}", _SIGN
        case ast.IfExp():
            chosen, other = (_written(one)[0] for one in (node.body, node.orelse))
            return f"{chosen} if {_written(node.test)[0]} else {other}", _SUM
        case ast.Compare(ops=[op], comparators=[right]) if type(op) in _COMPARED:
            a, b = (_bound(one, _QUOTIENT) for one in (node.left, right))
            return f"{a} {_COMPARED[type(op)]} {b}", _SUM
        case ast.Attribute(attr="T"):
            return f"{_bound(node.value, _ATOM)}'", _ATOM
        case ast.Attribute(value=ast.Name(id="v" | "w" | "np" | "math")):
            return node.attr, _ATOM
        case ast.Attribute():
            return f"{_bound(node.value, _ATOM)}.{node.attr}", _ATOM
        case ast.Subscript(slice=ast.Constant(str(name))):
            return name, _ATOM
        case ast.Subscript():
            index = ast.unparse(node.slice)
            if re.fullmatch(r"[(]?(?:[.]{3}|:|None|, )+[)]?", index):  # the same numbers
                return _written(node.value)
            return f"{_bound(node.value, _ATOM)}[{index}]", _ATOM
        case ast.Call():
            return _call(node)
        case _:
            return ast.unparse(node), _ATOM if isinstance(node, ast.Name | ast.Constant) else _SUM


def _source(text: str) -> str:
    """Write a source expression; one in brackets keeps them, unless it stands for itself."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return text
    bare = ast.unparse(node) != text and text.startswith("(")
    return _bound(node, _ATOM) if bare else _written(node)[0]


def letters(text: str) -> str:
    """Write in the catalogue's letters what stands in backquotes: source expressions.

    Examples
    --------
    >>> letters("`v.p_pred[:, None] * v.H.T`")
    "p_pred H'"
    >>> letters("`(v.K * v.H.T)` left out")
    "(K o H') left out"
    """
    text = re.sub("`([^`]*)`", lambda piece: _source(piece[1]), text)
    for old, new in _WORDS:
        text = re.sub(old, new, text)
    return re.sub(r"(?<=[\w)])''", "", text)  # of a transposed one the transposed


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


def _by_equations(text: str) -> str:
    """Write the equation of a formula in place of its key in the table, as in p.dense."""

    def of(found: re.Match[str]) -> str:
        known = _by_formula().get(found[0])
        return f"({known.equation})" if known else found[0]

    return re.sub(r"\b[A-Za-z]\w*(?:\.[a-z]\w*)+", of, text)


def _which(site: Site, edited: Set[tuple[str, int]]) -> str:
    """Write around what a name stands, of those that stand several times in a formula."""
    places = instrument(WRITTEN[site.call.inner]).places
    same = {n for n, one in enumerate(places) if one.text == site.text}
    if len(same) == 1 or all((site.call.inner, n) in edited for n in same):
        return ""
    around = next((one.text for one in places if site.place in one.inner), "")
    return f" in `{around}`" if around else ""


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
    edited = {(edit.inner, edit.place) for _, edit in one.edits}
    for site, edit in one.edits:
        what = letters(f"`{site.text}`")
        if site.place == RESULT:
            known = _by_formula().get(edit.inner)
            what = known.equation if known else what
        if re.search(r" [-+*/] | [A-Z\w']+$", _outside(what)):
            what = f"({what})"
        within = ""
        if site.place != RESULT:
            called = edit.inner not in (edit.root, *FORMS)
            within = _which(site, edited) + (f" within {edit.inner}" if called else "")
        parts.append(_by_equations(letters(edit.change.text.replace("{x}", what) + within)))
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
        same = named.formula.split(".")[0] == quantity or {own, quantity} == {"p", "P"}
        own = quantity if same else own
        lead = "" if own == quantity else f"{quantity}: "
        text = f"{lead}{own} = {named.equation}: {', and '.join(parts)}"
        if inside and len(parts) == 1:
            text = f"{lead}{own} = {parts[0]}"
    if one.scope:
        values = " or ".join(sorted(map(str, one.scope[1])))
        text += f" (where {one.scope[0]} is {values})"
    return text
