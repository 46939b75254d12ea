"""Scaffolds that ``loko-ref init`` writes: they run at once, decline everything, are filled in.

Their comments come from the catalogue. In another language than Python the protocol's part is that
of ``examples/harness.*``, whose own operations are left out.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

STATED = ("observation", "noise", "timing", "covariance", "diagonal", "beta", "lam", "q")
"""Options of which an implementation often has one value; the scaffolds list them."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """How a scaffold of one language is made."""

    file: str  # the file written by default; its suffix too
    next: str  # the command that verifies it, with `{file}` and `{stem}`
    # `(operation) -> text` that goes into the template for each; none where the template has no
    # operations
    operation: Callable[[Operation], str] | None = None
    harness: str = ""  # the example whose part of the protocol it has; empty for Python
    mappings: bool = True  # whether it reads inputs that are mappings (the weights of a network)


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _option(option: Option) -> str:
    """Describe an option on one line."""
    if option.name == "spec":
        return "the network, a list of layers: 'loko-ref operations model.forward' describes it"
    text = f"one of {', '.join(option.choices)}" if option.choices else option.text
    return text if option.default is None else f"{text}; default {_literal(option.default)}"


def _lines(operation: Operation, mark: str, indent: str) -> list[str]:
    """Return what an operation takes and returns, as the lines of a comment."""
    takes = [
        f"{i.name} {i.shape}: {i.text}{f' (only with {i.optional})' if i.optional else ''}"
        for i in operation.inputs
    ]
    takes += [f"{o.name}: {_option(o)}" for o in operation.options]
    returns = [f"{q.name} {q.shape}: {q.formula}" for q in operation.outputs]
    head = indent + mark
    found = [f"{head}{operation.text}"]
    for title, entries in (("takes", takes), ("returns any of", returns)):
        found.append(f"{head}{title}")
        for entry in entries:
            found += _wrapped(entry, f"{head}    ", f"{head}        ")
    return found


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=then)


def _python(operation: Operation) -> str:
    needed = [i.name for i in operation.inputs if not i.optional]
    needed += [o.name for o in operation.options if o.default is None]
    given = [f"{i.name}=None" for i in operation.inputs if i.optional]
    given += [f"{o.name}={_literal(o.default)}" for o in operation.options if o.default is not None]
    head = f"def {operation.name.replace('.', '_')}({', '.join([*needed, *given])}):"
    outputs = ", ".join(f'"{q.name}": ...' for q in operation.outputs)
    return "\n".join(
        [
            *_wrapped(head, "", "        "),
            *_lines(operation, "# ", "    "),
            *_wrapped(f"return {{{outputs}}}", "    # ", "    #     "),
            '    raise NotImplementedError("not filled in")',
        ]
    )


def _braces(
    operation: Operation, read: str, option: Callable[[Option], str], back: str, indent: str
) -> str:
    """Return the comments of one operation in a language with braces."""
    code = [read.format(name=i.name) for i in operation.inputs]
    code += [option(o) for o in operation.options]
    mark = f"{indent}// "
    lines = [*_lines(operation, "// ", indent), *(mark + one for one in code)]
    return "\n".join([*lines, *_wrapped(back, mark, f"{mark}    ")])


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
    body = _braces(operation, read, option, f"return {{{names}}};", "    ")
    return f'  if (operation == "{operation.name}") {{\n{body}\n  }}'


def _rust(operation: Operation) -> str:
    def option(o: Option) -> str:
        return f'let {o.name} = options.at("{o.name}")?.{"text" if o.choices else "number"}()?;'

    names = ", ".join(f'("{q.name}".into(), {q.name.lower()})' for q in operation.outputs)
    read = 'let {name} = get(input, "{name}")?;'
    back = f"return Ok(BTreeMap::from([{names}]));"
    body = _braces(operation, read, option, back, " " * 12)
    return (
        f'        "{operation.name}" => {{\n{body}\n            Err(UNSUPPORTED.into())\n        }}'
    )


def _js(operation: Operation) -> str:
    inputs = ", ".join(i.name for i in operation.inputs)
    options = ", ".join(o.name for o in operation.options)
    text = "\n".join(_lines(operation, "// ", "    "))
    names = ", ".join(q.name for q in operation.outputs)
    head = f"'{operation.name}': ({{ {inputs} }}, {{ {options} }}) => {{"
    head = "\n".join(_wrapped(head, "  ", "    "))
    back = "\n".join(_wrapped(f"return {{ {names} }}", "    // ", "    //     "))
    body = f"{text}\n{back}\n    throw new Unsupported('not filled in')"
    return f"{head.replace('{  }', '{}')}\n{body}\n  }},"


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
            lines.append(f'    # "{o.name}": {_literal(o.default)},{choices}')
    return "\n".join(lines)


def _operations(language: Language, only: str | None) -> list[Operation]:
    matches = matcher("--only", only)
    chosen = [OPERATIONS[name] for name in OPERATIONS if matches(name)]
    if not chosen:
        raise nothing_matches("--only", only, OPERATIONS, "loko-ref operations")
    if only is None:
        chosen = [OPERATIONS[name] for name in FIRST]
    chosen = [
        o for o in chosen if language.mappings or "mapping" not in {i.shape for i in o.inputs}
    ]
    return [_first(o) for o in chosen]


def _first(operation: Operation) -> Operation:
    """Return an operation of operations/1: what came later is sent to code that states it alone."""
    later = {i.name for i in operation.inputs if i.since > 1}
    return replace(
        operation,
        inputs=tuple(i for i in operation.inputs if i.since == 1),
        options=tuple(o for o in operation.options if o.since == 1),
        outputs=tuple(q for q in operation.outputs if not later & set(q.feeds)),
    )


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
        "NAMES": "\n".join(f'    "{name}",' for name in names),
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
