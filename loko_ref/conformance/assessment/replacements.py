"""What may stand in place of an expression in a formula that is changed: one slip each, by kind."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Iterator
from typing import Any

_OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.BitAnd: (ast.BitOr,),
}
_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_FUNCTIONS = {
    "sum": "mean",
    "mean": "sum",
    "max": "min",
    "maximum": "minimum",
    "exp": "expm1",
    "log": "log1p",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "cumsum": "cumprod",
    "tri": "ones",
    "tanh": "arctan",
}
"""Names of functions and methods that a slip takes for one another."""

_NO_NUMBERS = {"asarray", "array", "keep", "copy", "astype", "broadcast_to", "isinstance"}
"""Calls that leave the numbers as they are: to drop one is no mistake."""

_VALUES = (ast.Name, ast.Attribute, ast.Call, ast.BinOp, ast.Subscript)
"""Expressions that may be negated."""

KINDS = (
    *("operator", "dropped term", "dropped factor", "swapped operands", "comparison", "condition"),
    *("negation", "constant", "axis", "index", "dropped call", "swapped arguments", "function"),
    *("transpose", "operand"),
)
"""Kinds of change."""


def _called(node: ast.AST | None) -> str:
    if not isinstance(node, ast.Call):
        return ""
    f = node.func
    return f.attr if isinstance(f, ast.Attribute) else f.id if isinstance(f, ast.Name) else ""


def _numbers(node: ast.Constant, parent: ast.AST | None) -> Iterator[tuple[str, Any]]:
    """Yield other numbers in place of one: of an axis, of an index, or any."""
    n: Any = node.value
    if isinstance(n, bool):
        yield "constant", not n
        return
    axis = isinstance(parent, ast.keyword) and parent.arg == "axis"
    if axis or _called(parent) in ("swapaxes", "reshape"):
        yield from (("axis", k) for k in (0, 1, 2) if k != n)
    elif isinstance(parent, ast.Subscript | ast.Slice):
        yield from (("index", k) for k in (n + 1, n - 1))
    else:
        yield from (("constant", k) for k in dict.fromkeys((n + 1, n - 1, 2 * n, n / 2)) if k != n)
        if n and not isinstance(parent, ast.UnaryOp):
            yield "constant", -n


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    f, name = node.func, _called(node)
    if name in _NO_NUMBERS or any(isinstance(a, ast.Starred) for a in node.args):
        return
    real = [a for a in node.args if not (isinstance(a, ast.Name) and a.id == "v")]
    owner = ast.unparse(f.value).split(".")[0] if isinstance(f, ast.Attribute) else ""
    if isinstance(f, ast.Attribute) and owner not in ("np", "math", "scipy", "v"):
        yield "dropped call", f.value  # a method
        real = []
    if real:
        yield "dropped call", real[-1]
    at = [k for k, a in enumerate(node.args) if a in real and not isinstance(a, ast.Constant)]
    for i, j in itertools.pairwise(at):
        new = copy.deepcopy(node)
        new.args[i], new.args[j] = new.args[j], new.args[i]
        yield "swapped arguments", new
    if name in _FUNCTIONS:
        new = copy.deepcopy(node)
        assert isinstance(new.func, ast.Attribute | ast.Name)
        setattr(new.func, "attr" if isinstance(f, ast.Attribute) else "id", _FUNCTIONS[name])
        yield "function", new


def _with(node: Any, **fields: Any) -> Any:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _of_operator(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    for op in _OPERATORS.get(type(node.op), ()):
        yield "operator", _with(node, op=op())
    term = isinstance(node.op, ast.Add | ast.Sub)
    for side in (node.left, node.right):
        if not isinstance(node.op, ast.Pow) or side is node.left:
            yield "dropped term" if term else "dropped factor", side
    if isinstance(node.op, ast.Sub | ast.Div | ast.MatMult):
        yield "swapped operands", _with(node, left=node.right, right=node.left)
    if isinstance(node.op, ast.MatMult):
        for name in ("left", "right"):
            side = getattr(node, name)
            if not (isinstance(side, ast.Attribute) and side.attr == "T"):
                turned = ast.Attribute(side, "T", ast.Load())
                yield "transpose", _with(node, **{name: turned})


def replacements(
    node: ast.AST, parent: ast.AST | None, operands: list[ast.expr]
) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in place of an expression, by kind.

    Parameters
    ----------
    node, parent : syntax tree
        The expression, and what it is part of.
    operands : list of syntax tree
        What may be taken for one of them by mistake.
    """
    if isinstance(node, ast.BinOp):
        yield from _of_operator(node)
    elif isinstance(node, ast.UnaryOp):
        if not isinstance(node.operand, ast.Constant):
            yield "negation", node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for op in _COMPARISONS.get(type(node.ops[0]), ()):
            yield "comparison", _with(node, ops=[op()])
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "condition", _with(node, op=other)
        yield from (("condition", value) for value in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (("condition", branch) for branch in (node.body, node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield from ((kind, ast.Constant(k)) for kind, k in _numbers(node, parent))
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield "transpose", node.value
    elif isinstance(node, ast.Slice) and (node.lower is None) != (node.upper is None):
        yield "index", _with(node, lower=node.upper, upper=node.lower)
    operand = isinstance(parent, ast.BinOp | ast.Return | ast.Lambda)
    if operand and isinstance(node, _VALUES) and _called(node) not in _NO_NUMBERS:
        yield "negation", ast.UnaryOp(ast.USub(), node)
    text = ast.unparse(node)
    if operand and any(text == ast.unparse(one) for one in operands):
        yield from (("operand", one) for one in operands if ast.unparse(one) != text)
