"""Formulas with every operand, product and constant in reach.

A formula's source is compiled anew with each expression passed through a hook: what it comes to
can be seen, and replaced, one place at a time. Helper functions that a formula calls are followed.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.filter import FORMS

__all__ = ["RESULT", "WRITTEN", "Instrumented", "Place", "See", "instrument"]

WRITTEN = {**FORMULA_TABLE, **{name: formula for name, (_, formula, _) in FORMS.items()}}
"""Formulas in which a change may stand: those of the table, and their other forms."""

See = Callable[[int, Any], Any]
"""Hook of an instrumented formula: place, value -> the value to go on with."""

RESULT = -1
"""Place of what a formula returns."""

_SKIP = ("F", "keep")
"""Attributes of the values that are no quantities."""

_SOLVERS = ("fixed_point",)
"""Helpers that iterate: a wrong equation is in their arguments, never inside."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """One expression of a formula.

    Attributes
    ----------
    text : str
        Its source.
    inner : tuple of int
        Places of its operands or arguments.
    operator : str
        That of a product, sum, ...: the name of its class in ``ast``; "" else.
    """

    text: str
    inner: tuple[int, ...] = ()
    operator: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Instrumented:
    """A formula and its places.

    Attributes
    ----------
    made : callable
        From the hook to the formula.
    places : sequence of Place
        By number.
    """

    made: Callable[[See], Callable[..., Any]]
    places: Sequence[Place]


@dataclass
class _Wrap(ast.NodeTransformer):
    """Passes each expression through the hook, its number with it."""

    known: Mapping[str, Any]
    places: list[Place] = field(default_factory=list)

    def _wrapped(self, node: ast.expr, text: str, inner: Sequence[Any], op: str = "") -> ast.expr:
        found = tuple(n for one in inner if (n := self._number(one)) is not None)
        self.places.append(Place(text=text, inner=found, operator=op))
        number = ast.Constant(len(self.places) - 1)
        call = ast.Call(func=ast.Name("__see", ast.Load()), args=[number, node], keywords=[])
        return ast.copy_location(call, node)

    @staticmethod
    def _number(one: Any) -> int | None:
        """Return the number of a wrapped expression."""
        if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "__see":
            return int(one.args[0].value)  # type: ignore[attr-defined]
        return None

    def _is_known(self, node: ast.expr) -> bool:
        """Return whether a name is a module, a function or a class: no quantity."""
        while isinstance(node, ast.Attribute):
            node = node.value
        if not isinstance(node, ast.Name):
            return False
        one = self.known.get(node.id, __builtins__.get(node.id))  # type: ignore[attr-defined]
        return isinstance(one, types.ModuleType) or callable(one)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        text, func = ast.unparse(node), node.func
        if isinstance(func, ast.Attribute) and not self._is_known(func) and func.attr not in _SKIP:
            func.value = self.visit(func.value)
        node.args = [self.visit(a) for a in node.args]
        for one in node.keywords:
            one.value = self.visit(one.value)
        owner = [func.value] if isinstance(func, ast.Attribute) else []
        return self._wrapped(node, text, [*owner, *node.args])

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if node.attr in _SKIP:
            return node
        text = ast.unparse(node)
        if not self._is_known(node):
            node.value = self.visit(node.value)
        return self._wrapped(node, text, [node.value])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if not isinstance(node.ctx, ast.Load) or self._is_known(node):
            return node
        return self._wrapped(node, node.id, [])

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if type(node.value) not in (int, float):
            return node
        return self._wrapped(node, repr(node.value), [])

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        return node

    def _of_parts(self, node: Any) -> ast.expr:
        if isinstance(getattr(node, "ctx", None), ast.Store):
            return node
        text = ast.unparse(node)
        self.generic_visit(node)
        if isinstance(node, ast.Subscript) and (index := self._number(node.slice)) is not None:
            of = ast.unparse(ast.parse(text, mode="eval").body.value)  # type: ignore[attr-defined]
            here = self.places[index]
            self.places[index] = replace(here, text=f"index {here.text} of {of}")
        inner = [
            getattr(node, name)
            for name in ("left", "right", "operand", "value")
            if name in node._fields
        ]
        return self._wrapped(node, text, inner, type(getattr(node, "op", None)).__name__)

    visit_BinOp = visit_UnaryOp = visit_Compare = visit_BoolOp = _of_parts
    visit_IfExp = visit_Subscript = _of_parts


@cache
def _module(name: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(name)))


def _definition(function: types.FunctionType) -> ast.FunctionDef | ast.Lambda | None:
    """Find where a function stands in its module's source."""
    code, found = function.__code__, []
    for node in ast.walk(_module(function.__module__)):
        if isinstance(node, ast.FunctionDef | ast.Lambda) and node.lineno == code.co_firstlineno:
            name = node.name if isinstance(node, ast.FunctionDef) else "<lambda>"
            if name == code.co_name and [a.arg for a in node.args.args] == list(
                code.co_varnames[: code.co_argcount]
            ):
                found.append(node)
    return found[0] if len(found) == 1 else None


def _instrumented(function: Any, places: list[Place], above: tuple[Any, ...]) -> Any:
    """Return ``see -> function`` and add to the places; None where there is no source."""
    if not isinstance(function, types.FunctionType) or function in above or len(above) > 3:
        return None
    if not function.__module__.startswith("loko_ref.textbook") or function.__name__ in _SOLVERS:
        return None
    node = _definition(function)
    if node is None:
        return None
    node = copy.deepcopy(node)
    closed = inspect.getclosurevars(function).nonlocals
    known = {**function.__globals__, **closed}
    wrap = _Wrap(known, places)
    if isinstance(node, ast.Lambda):
        node.body = wrap.visit(node.body)
        body: list[ast.stmt] = [ast.Return(node)]
    else:
        assert isinstance(node, ast.FunctionDef)
        node.decorator_list, node.returns = [], None
        for argument in node.args.args:
            argument.annotation = None
        node.body = [wrap.visit(line) for line in node.body]
        body = [node, ast.Return(ast.Name(node.name, ast.Load()))]
    called = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    helpers = {}
    for name in sorted(called):
        helper = _instrumented(known.get(name), places, (*above, function))
        if helper is not None:
            helpers[name] = helper
    outer = ast.parse("def __made(__see): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.body = body
    module = ast.fix_missing_locations(ast.Module([outer], []))
    code = compile(module, f"<{function.__qualname__}>", "exec")
    defaults = function.__defaults__

    def made(see: See) -> Callable[..., Any]:
        scope = {**known, **{name: helper(see) for name, helper in helpers.items()}}
        exec(code, scope)
        anew: types.FunctionType = scope["__made"](see)
        anew.__defaults__ = defaults
        return anew

    return made


@cache
def instrument(formula: Callable[..., Any]) -> Instrumented:
    """Put every expression of a formula in reach.

    Parameters
    ----------
    formula : callable
        One of the textbook's. Of any other, its result alone is in reach.
    """
    places: list[Place] = []
    made = _instrumented(formula, places, ())
    return Instrumented(made=made or (lambda see: formula), places=tuple(places))
