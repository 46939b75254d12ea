"""Scaffolds that ``loko-ref init`` writes: what runs at once, declines everything, and is filled in.

Their comments come from the catalogue. In another language than Python the protocol's part is that
of ``examples/harness.*``, whose own operations are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loko_ref.conformance.cases.globs import matcher, nothing_matches
from loko_ref.conformance.catalogue.entry import Operation, Option
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.errors import unknown_option
from loko_ref.files.shipped import shipped

__all__ = ["LANGUAGES", "Language", "scaffold"]

FIRST = (
    "lora.delta",
    "kalman.time_update",
    "kalman.diagonal_update",
    "observation.softmax",
    "observation.glm",
    "noise.update",
    "loko.step",
)
"""Operations that a scaffold has unless others are asked for."""

STATED = ("observation", "noise", "timing", "diagonal", "beta", "lam", "q")
"""Options of which an implementation often has one value; the scaffolds list them."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """How a scaffold of one language is made.

    Attributes
    ----------
    file : str
        The file written by default; its suffix too.
    next : str
        The command that verifies it, with ``{file}`` and ``{stem}``.
    operation : callable, optional
        ``(operation) -> text`` that goes into the template for each; none where the template has
        no operations.
    harness : str
        The example whose part of the protocol it has; empty for Python.
    mappings : bool
        Whether it reads inputs that are mappings (the weights of a network).
    """

    file: str
    next: str
    operation: Callable[[Operation], str] | None = None
    harness: str = ""
    mappings: bool = True


def _default(option: Option) -> str:
    return "" if option.default is None else f", default {option.default!r}"


def _lines(operation: Operation, mark: str, indent: str) -> list[str]:
    """Return what an operation takes and returns, as the lines of a comment or a docstring."""
    found = [f"{operation.text}", "takes"]
    for i in operation.inputs:
        only = f" (only with {i.optional})" if i.optional else ""
        found.append(f"    {i.name} {i.shape}: {i.text}{only}")
    for o in operation.options:
        choices = f"one of {', '.join(o.choices)}" if o.choices else "an option"
        found.append(f"    {o.name}: {choices}{_default(o)}")
    found.append("returns any of")
    found += [f"    {q.name} {q.shape}: {q.formula}" for q in operation.outputs]
    return [f"{indent}{mark}{line}".rstrip() for line in found]


def _python(operation: Operation) -> str:
    needed = [i.name for i in operation.inputs if not i.optional]
    needed += [o.name for o in operation.options if o.default is None]
    given = [f"{i.name}=None" for i in operation.inputs if i.optional]
    given += [f"{o.name}={o.default!r}" for o in operation.options if o.default is not None]
    name = operation.name.replace(".", "_")
    head = f"def {name}({', '.join([*needed, *given])}):"
    if len(head) > 96:
        head = f"def {name}(\n    {', '.join(needed)},\n    {', '.join(given)},\n):"
    outputs = ", ".join(f'"{q.name}": {q.name}' for q in operation.outputs)
    text = "\n".join(_lines(operation, "# ", "    "))
    return f"{head}\n{text}\n    raise NotImplementedError  # return {{{outputs}}}\n"


def _braces(operation: Operation, read: str, options: Callable[[Option], str], back: str) -> str:
    """Return the comments of one operation in a language with braces."""
    lines = _lines(operation, "// ", "")
    takes = [read.format(name=i.name) for i in operation.inputs if i.since == 1]
    takes += [options(o) for o in operation.options]
    return "\n".join([*lines, *(f"// {line}" for line in takes), f"// {back}"])


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line for line in text.split("\n"))


def _cpp(operation: Operation) -> str:
    def option(o: Option) -> str:
        kind, of = (
            ("const std::string&", "text")
            if o.choices
            else ("bool", "truth")
            if isinstance(o.default, bool)
            else ("double", "number")
        )
        return f'{kind} {o.name} = options.at("{o.name}").{of};'

    names = ", ".join(f'{{"{q.name}", {q.name}}}' for q in operation.outputs)
    read = 'const Tensor<T>& {name} = in.at("{name}");'
    body = _indented(_braces(operation, read, option, f"return {{{names}}};"), "    ")
    return f'  if (operation == "{operation.name}") {{\n{body}\n  }}'


def _rust(operation: Operation) -> str:
    def option(o: Option) -> str:
        return f'let {o.name} = options.at("{o.name}")?.{"text" if o.choices else "number"}()?;'

    names = ", ".join(f'("{q.name}".into(), {q.name.lower()})' for q in operation.outputs)
    read = 'let {name} = get(input, "{name}")?;'
    back = f"return Ok(BTreeMap::from([{names}]));"
    body = _indented(_braces(operation, read, option, back), "            ")
    return f'        "{operation.name}" => {{\n{body}\n            Err(UNSUPPORTED.into())\n        }}'


def _js(operation: Operation) -> str:
    inputs = ", ".join(i.name for i in operation.inputs if i.since == 1)
    options = ", ".join(o.name for o in operation.options if o.since == 1)
    text = _indented("\n".join(_lines(operation, "// ", "")), "    ")
    names = ", ".join(q.name for q in operation.outputs)
    head = f"  '{operation.name}': ({{ {inputs} }}, {{ {options} }}) => {{"
    more = f"    // return {{ {names} }}\n    throw new Unsupported('not filled in')"
    return f"{head.replace('{  }', '{}')}\n{text}\n{more}\n  }},"


LANGUAGES = {
    "numpy": Language(file="my_loko.py", next="loko-ref verify {file}", operation=_python),
    "torch": Language(file="my_torch_loko.py", next="loko-ref verify {file}"),
    "jax": Language(file="my_jax_loko.py", next="loko-ref verify {file}"),
    "cpp": Language(
        file="my_loko.cpp",
        next="c++ -std=c++17 -O2 {file} -o {stem} && loko-ref verify --cmd {stem}",
        operation=_cpp,
        harness="harness.cpp",
        mappings=False,
    ),
    "rust": Language(
        file="my_loko.rs",
        next="rustc --edition 2021 -O {file} -o {stem} && loko-ref verify --cmd {stem}",
        operation=_rust,
        harness="harness.rs",
        mappings=False,
    ),
    "js": Language(
        file="my_loko.js",
        next="loko-ref verify --cmd 'node {file}'",
        operation=_js,
        harness="harness.js",
    ),
}


def _options(operation: Operation) -> str:
    """Return the options of LoKO's step that code often has one value of, as lines of a dict."""
    lines = []
    for o in operation.options:
        if o.name in STATED:
            choices = f"  # one of {', '.join(o.choices)}" if o.choices else ""
            lines.append(f"    # {o.name!r}: {o.default!r},{choices}".replace("'", '"'))
    return "\n".join(lines)


def _operations(language: Language, only: str | None) -> list[Operation]:
    matches = matcher("--only", only)
    chosen = [OPERATIONS[name] for name in OPERATIONS if matches(name)]
    if not chosen:
        raise nothing_matches("--only", only, OPERATIONS, "loko-ref operations")
    if only is None:
        chosen = [OPERATIONS[name] for name in FIRST]
    return [o for o in chosen if language.mappings or "mapping" not in {i.shape for i in o.inputs}]


def scaffold(name: str, only: str | None = None) -> str:
    """Return the text of a scaffold.

    Parameters
    ----------
    name : str
        One of `LANGUAGES`.
    only : str, optional
        The operations that it has, by a glob, where it has functions by operation.

    Raises
    ------
    InputError
        If there is no such language, or `only` matches no operation.
    """
    if name not in LANGUAGES:
        raise unknown_option("LANGUAGE", name, LANGUAGES)
    language = LANGUAGES[name]
    text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    words: dict[str, Any] = {"OPTIONS": _options(OPERATIONS["loko.step"])}
    if language.operation is not None:
        operations = _operations(language, only)
        words |= _by_operation(language, operations)
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    if language.harness:
        text = _harness(language.harness, text)
    return text


def _by_operation(language: Language, operations: Sequence[Operation]) -> dict[str, str]:
    assert language.operation is not None
    names = [o.name for o in operations]
    between = "\n\n\n" if not language.harness else "\n"
    return {
        "FUNCTIONS": between.join(language.operation(o).rstrip() for o in operations),
        "MAPPING": "\n".join(f'    "{name}": {name.replace(".", "_")},' for name in names),
        "NAMES": ", ".join(f'"{name}"' for name in names),
        "COUNT": str(len(names)),
    }


def _harness(file: str, own: str) -> str:
    """Return a harness with `own` in place of its head and of its operations."""
    text = (shipped("examples") / file).read_text(encoding="utf-8")
    head, _, operations = own.partition("@HARNESS@\n")
    text = re.sub(r"\A(//.*\n)+", lambda _: head, text)
    begin, end = (re.search(rf"^// -+ {x}\n", text, re.M) for x in ("filter", "conversation"))
    assert begin is not None
    assert end is not None
    return text[: begin.start()] + operations + "\n" + text[end.start() :]
