"""Operations, cases, known mistakes, properties: a page each."""

import json
from collections import defaultdict
from pathlib import Path

from loko_ref.conformance.cases.registry import Case, all_cases
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.catalogue.network_text import LAYERS
from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS
from loko_ref.conformance.judge.compare import compare
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import Mutant, all_mutants, evaluate
from loko_ref.conformance.reports.case import describe
from pages.markdown import block, code, page, table, text, toctree

LABELLED = "[{}]"


def _stem(case: Case) -> str:
    return case.id.rpartition("/")[0]


CASES = {_stem(case): case for case in all_cases() if case.dtype == "float64"}
COVERING: dict[str, list[str]] = defaultdict(list)
for _name, _case in CASES.items():
    for _id in _case.recipe.covers:
        COVERING[_id].append(_name)


def _case_link(name: str) -> str:
    return f"[{text(name)}](../cases/{name.replace('/', '-')}.md)"


def _mistake_link(key: str) -> str:
    return f"[{text(key)}](../mistakes/{key}.md)"


def _labels(labels: tuple[str, ...]) -> str:
    return " ".join(text(LABELLED.format(label)) for label in labels)


def _since(version: int) -> str:
    return f" (since operations/{version})" if version > 1 else ""


def _operation(operation: Operation) -> list[str]:
    inputs = [
        (
            code(i.name),
            code(i.shape),
            text(i.text + (f"; given only with {i.optional}" if i.optional else ""))
            + _since(i.since),
        )
        for i in operation.inputs
    ]
    options = [
        (
            code(o.name),
            "none" if o.default is None else code(json.dumps(o.default)),
            ", ".join(map(code, o.choices)),
            text(o.text) + _since(o.since),
        )
        for o in operation.options
    ]
    outputs = [
        (code(q.name), code(q.shape), code(q.formula), _labels(q.labels), code(", ".join(q.feeds)))
        for q in operation.outputs
    ]
    cases = [
        (_case_link(name), ", ".join(map(_mistake_link, c.recipe.covers)) or text(c.recipe.text))
        for name, c in CASES.items()
        if c.operation.name == operation.name
    ]
    parts = [f"{text(operation.text[0].upper() + operation.text[1:])}.\n"]
    parts += ["## Inputs\n", table(("input", "shape", "meaning"), inputs)]
    if options:
        parts += ["## Options\n", table(("option", "default", "one of", "meaning"), options)]
    head = ("output", "shape", "formula", "derivation", "from")
    parts += ["## Outputs, in dataflow order\n", table(head, outputs)]
    if any(o.name == "spec" for o in operation.options):
        parts.append("The layers of `spec`: [networks](networks.md).\n")
    parts += ["## Cases\n", table(("case", "it is there for"), cases)]
    return parts


def _operations(folder: Path) -> None:
    rows = [(f"[{name}]({name}.md)", text(o.text)) for name, o in OPERATIONS.items()]
    words = f"""What an implementation may offer: the catalogue `{CATALOGUE}`. `IMPLEMENTATION` maps
an operation's name to a function, which gets the inputs and options as keywords and returns a
mapping of output name to array, any subset of the outputs, in the inputs' dtype. What it does not
offer it declines by `NotImplementedError`. `loko-ref operations NAME` prints an entry.\n"""
    names = [*OPERATIONS, "networks"]
    page(
        folder / "index.md",
        "Operations",
        words,
        table(("operation", "what it is"), rows),
        toctree(names),
    )
    for name, operation in OPERATIONS.items():
        page(folder / f"{name}.md", name, *_operation(operation))
    words = "The option `spec` of an operation lists its network's layers.\n"
    page(folder / "networks.md", "Networks", words, block(LAYERS))


def _cases(folder: Path, quick: bool) -> None:
    words = f"""A case is an operation with inputs and options, under an id that is never given to
another one: `operation/case/dtype`. Each of these {len(CASES)} is run in float64 and float32.
`loko-ref case ID` prints one with its numbers and writes a program that runs it without this
package.\n"""
    parts = [words]
    for name in OPERATIONS:
        rows = [
            (_case_link(key), text(case.covers))
            for key, case in CASES.items()
            if case.operation.name == name
        ]
        parts += [f"## {name}\n", table(("case", "it is there for"), rows)]
    page(folder / "index.md", "Cases", *parts)
    for number, (name, case) in enumerate(CASES.items()):
        numbers = "in a build without --quick" if quick and number % 5 else describe(case)
        covers = [f"- {_mistake_link(key)}" for key in case.recipe.covers]
        why = "\n".join(
            ["It is there for these [known mistakes](../mistakes/index.md):\n", *covers]
        )
        operation = f"A case of [{case.operation.name}](../operations/{case.operation.name}.md).\n"
        again = block(f"loko-ref verify my_loko.py --only {case.id}\nloko-ref case {case.id}", "sh")
        page(
            folder / f"{name.replace('/', '-')}.md",
            name,
            operation,
            f"{why}\n" if covers else f"{text(case.recipe.text)}\n",
            "## Numbers\n\nIn float64, large arrays by their corners:\n",
            block(numbers),
            "## Reproduce it\n",
            again,
            listed=False,
        )


def _shows(one: Mutant) -> list[str]:
    """Describe how a mistake shows: in the first of its cases that it changes."""
    for name in COVERING[one.id]:
        case = CASES[name]
        outputs = evaluate(one, case, one.example)
        if outputs is None:
            continue
        other = [
            f"`{key}` has the shape {outputs[key].shape}, not {value.shape}"
            for key, value in expected(case).items()
            if key in outputs and outputs[key].shape != value.shape
        ]
        if other:
            return [f"In {_case_link(name)}: {other[0]}.\n"]
        found, _ = compare(case, outputs)
        if found is None:
            continue
        size = "" if one.example is None else f" (here with the size {one.example:g})"
        return [
            f"In {_case_link(name)}{size} the first wrong quantity is `{found.quantity}`:\n",
            table(
                ("element", "expected", "got", "error / tolerance", "derivation"),
                [
                    (
                        code(f"{found.quantity}{list(found.index)}"),
                        code(f"{found.expected:.10g}"),
                        code(f"{found.got:.10g}"),
                        code(f"{found.ratio:.3g}"),
                        _labels(found.labels),
                    )
                ],
            ),
        ]
    return ["In float64 it stays within the tolerances of its cases: it shows in float32.\n"]


def _mistakes(folder: Path) -> None:
    mistakes = all_mutants()
    words = f"""The {len(mistakes)} mistakes that a failed check is compared with: each a variant of
the right formulas that differs in one of them, under an id that is never reused. `loko-ref mutants`
prints them, `loko-ref mutants --score` verifies each: is it caught, is it named first?\n"""
    rows = [(f"[{text(m.id)}]({m.id}.md)", text(m.name), code(m.look)) for m in mistakes]
    page(
        folder / "index.md",
        "Known mistakes",
        words,
        table(("id", "mistake", "the right line"), rows),
    )
    for m in mistakes:
        where = "\n".join(f"- {_case_link(name)}" for name in COVERING[m.id])
        page(
            folder / f"{m.id}.md",
            f"{text(m.id)}: {text(m.name)}",
            f"{text(m.explanation)}\n",
            "## The right line\n",
            block(m.look, "python"),
            "## How it shows\n",
            *_shows(m),
            "## Cases that are there for it\n",
            f"{where}\n",
            "[All known mistakes](index.md)\n",
            listed=False,
        )


def _properties(folder: Path) -> None:
    from loko_ref.properties import all_properties

    words = """Exact facts, each checked without an expected value: an implementation is compared
with itself, or with a bound. `loko-ref properties my_loko.py` checks all that an implementation
offers; `loko-ref properties --matrix` prints which known mistake each one finds.\n"""
    facts = all_properties().values()
    parts = [words]
    for name in OPERATIONS:
        rows = [
            (code(f.name.partition("/")[2]), text(f.statement), text(f.domain), _labels(f.labels))
            for f in facts
            if f.operation == name
        ]
        if rows:
            parts += [f"## {name}\n", table(("property", "fact", "domain", "derivation"), rows)]
    page(folder / "properties.md", "Properties", *parts)


def write(source: Path, quick: bool = False) -> None:
    """Write the four catalogues; a quick build gives the numbers of every fifth case alone."""
    _operations(source / "operations")
    _cases(source / "cases", quick)
    _mistakes(source / "mistakes")
    _properties(source)
