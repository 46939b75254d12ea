"""Mistakes made by changing the syntax trees of the textbook's formulas, as mutation testing does.

A change replaces one expression of one function: an operator, an operand, an axis, a constant, an
index, a comparison, a condition; it drops a term, a factor, a call or a transpose, swaps operands
or arguments, or negates. What it may change is every entry of the table of formulas, and every
rule of a quantity: a function of the values ``v``. An entry becomes an entry of a changed table; a
rule is exchanged, by its code, while the plain route runs.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from loko_ref.conformance.assessment.replacements import replacements
from loko_ref.textbook import FORMULA_TABLE

MODULES = (
    *("filter", "layers", "tokens", "network"),
    *("optimizers", "lte", "lte_heads", "lte_state"),
)
"""Modules of the textbook that hold formulas and rules."""

_AT_IMPORT = {"_of_input", "_of_output"}
"""Functions whose rules are made once, when the textbook is imported."""

_NO_OPERANDS = {"F", "keep", "o", "spec", "slot", "slots", "new", "given", "names"}
"""Members of the values that are no numbers."""

Scope = ast.Lambda | ast.FunctionDef


@dataclass(frozen=True, eq=False)
class Formula:
    """A function that may be changed."""

    name: str  # its first entry in the table of formulas, or `module.function` of a rule
    keys: tuple[str, ...]  # all its entries in the table; none for a rule
    module: ModuleType  # where it stands
    node: Scope  # of the function


@dataclass(frozen=True, eq=False)
class Change:
    """One change of one formula."""

    formula: Formula  # of what
    kind: str  # one of `replacements.KINDS`
    # first and last line of the innermost function that it is in, and of its statement
    scope: tuple[int, int, int]
    text: str  # the changed function

    @property
    def diff(self) -> str:
        """The lines that differ, in the style of ``diff``."""
        old, new = (text.splitlines() for text in (ast.unparse(self.formula.node), self.text))
        lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
        return "\n".join(line for line in lines if not line.startswith("@@"))

    def table(self) -> dict[str, Callable[..., Any]]:
        """Return the changed entries of the table; of a rule a mark on the layers.

        A dataflow is kept by its layers: with the mark those of right code are not met.
        """
        keys = self.formula.keys
        if keys:
            return dict.fromkeys(keys, self._made())
        mark = f"{self.formula.name}: {self.diff}"
        return {"layers": lambda spec: [{**spec[0], "changed": mark}, *spec[1:]]}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the code of a rule for a while; an entry of the table stays as it is."""
        if self.formula.keys:
            yield
            return
        function = getattr(self.formula.module, self.formula.node.name)  # type: ignore[union-attr]
        right: CodeType = function.__code__
        function.__code__ = self._made().__code__
        try:
            yield
        finally:
            function.__code__ = right

    def _made(self) -> FunctionType:
        node, name = self.formula.node, "made"
        text = f"{name} = {self.text}"
        if isinstance(node, ast.FunctionDef):
            text, name = self.text, node.name
        program = f"from __future__ import annotations\n{text}"
        found: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a string that is indexed by a name
            code = compile(program, f"<{self.formula.name}, changed>", "exec")
        exec(code, vars(self.formula.module), found)
        function: FunctionType = found[name]
        return function


# ------------------------------------------------------------------------ what may be changed


def _takes_values(node: Scope) -> bool:
    return "v" in {a.arg for a in node.args.args}


@cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


@cache
def formulas() -> tuple[Formula, ...]:
    """List the entries of the table of formulas, and the functions that hold rules."""
    found = []
    for part in MODULES:
        module = import_module(f"loko_ref.textbook.{part}")
        tree = _tree(module)
        defs = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        entries: dict[Scope, list[str]] = {}
        for one in tree.body:
            value = one.value if isinstance(one, (ast.Assign, ast.AnnAssign)) else None
            if isinstance(value, ast.Dict):
                for key, entry in zip(value.keys, value.values, strict=True):
                    item = defs.get(entry.id) if isinstance(entry, ast.Name) else entry
                    name = key.value if isinstance(key, ast.Constant) else None
                    if name in FORMULA_TABLE and isinstance(item, Scope):
                        entries.setdefault(item, []).append(str(name))
        found += [Formula(keys[0], tuple(keys), module, node) for node, keys in entries.items()]
        for node in defs.values():
            rules = any(_takes_values(n) for n in ast.walk(node) if isinstance(n, Scope))
            called = node.name in _AT_IMPORT or bool(node.decorator_list)
            if rules and node not in entries and not called:
                found.append(Formula(f"{part}.{node.name}", (), module, node))
    return tuple(found)


def _scopes(formula: Formula) -> Iterator[tuple[ast.AST, ast.AST, Scope, Any]]:
    """Yield every expression that may be changed, its parent, its function and its statement."""

    def walk(
        node: ast.AST, parent: ast.AST, scope: Scope | None, statement: Any
    ) -> Iterator[tuple[ast.AST, ast.AST, Scope, Any]]:
        if isinstance(node, Scope):
            inside = node if formula.keys or scope is not None or _takes_values(node) else None
            for one in node.body if isinstance(node, ast.FunctionDef) else [node.body]:
                yield from walk(one, node, inside, node)
            return
        if isinstance(node, ast.JoinedStr | ast.arguments):
            return
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.expr) and scope is not None:
            yield node, parent, scope, statement
        for child in ast.iter_child_nodes(node):
            yield from walk(child, node, scope, statement)

    yield from walk(formula.node, formula.node, None, formula.node)


# --------------------------------------------------------------------------------- the changes


def _operands(formula: Formula) -> list[ast.expr]:
    """List arguments of a function, and members of v that are used in it or in its module."""
    found: dict[str, ast.expr] = {}
    tree = _tree(formula.module) if formula.keys else formula.node
    methods = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "v":  # noqa: SIM102
            if node.attr not in _NO_OPERANDS and node not in methods:
                found[ast.unparse(node)] = node
    if not any(_takes_values(n) for n in ast.walk(formula.node) if isinstance(n, Scope)):
        found = {}
    for a in formula.node.args.args if formula.keys else ():
        if a.arg != "v":
            found[a.arg] = ast.Name(a.arg, ast.Load())
    return list(found.values())


def _exchanged(root: Scope, parent: ast.AST, old: ast.AST, new: ast.AST) -> str:
    """Write a function with one node exchanged."""
    for name, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, name, new)
            text = ast.unparse(root)
            setattr(parent, name, old)
            return text
        if isinstance(value, list) and any(one is old for one in value):
            at = next(k for k, one in enumerate(value) if one is old)
            value[at] = new
            text = ast.unparse(root)
            value[at] = old
            return text
    raise AssertionError("no child of its parent")


@cache
def changes_of(formula: Formula) -> tuple[Change, ...]:
    """List every change of one formula; each differs in text from it and from the others."""
    operands, found = _operands(formula), {ast.unparse(formula.node)}
    made = []
    for node, parent, scope, statement in list(_scopes(formula)):
        for kind, new in list(replacements(node, parent, operands)):
            text = _exchanged(formula.node, parent, node, new)
            if text not in found:
                found.add(text)
                at: Any = node if isinstance(statement, Scope) else statement
                lines = (scope.lineno, at.lineno, at.end_lineno)
                made.append(Change(formula, kind, lines, text))
    return tuple(made)


def drawn(seed: int, wanted: Callable[[Formula], bool] = lambda _: True) -> Iterator[Change]:
    """Yield every change once, one of each formula in turn, in an order that the seed decides.

    Parameters
    ----------
    seed : int
        Of the order.
    wanted : callable
        Whether a formula is changed at all.
    """
    chosen = [formula for formula in formulas() if wanted(formula)]
    left: dict[Formula, list[Change]] = {}
    for turn in itertools.count():
        for at in np.argsort(_random(f"{seed}", len(chosen))):
            if chosen[at] not in left:
                left[chosen[at]] = _by_kind(chosen[at], seed)
            if turn < len(left[chosen[at]]):
                yield left[chosen[at]][turn]
        if turn >= max(map(len, left.values()), default=0):
            return


def _random(seed: str, count: int) -> Any:
    return np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode()))).random(count)


def _by_kind(formula: Formula, seed: int) -> list[Change]:
    """Shuffle the changes of a formula, one of each kind in turn: most are of few kinds."""
    rank: dict[str, int] = {}
    ranked = []
    for k in np.argsort(_random(f"{seed} {formula.name}", len(changes_of(formula)))):
        one = changes_of(formula)[k]
        rank[one.kind] = rank.get(one.kind, 0) + 1
        ranked.append((rank[one.kind], one))
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]
