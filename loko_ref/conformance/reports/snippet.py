"""One case as a program and as a document: what reproduces it without this package.

:func:`python` writes a script that needs NumPy alone: inputs, options, expected numbers and
tolerances as literals that are exact in their dtype, the call, and the comparison, which finds the
first wrong quantity as ``loko-ref verify`` does. :func:`as_json` writes the same numbers for other
languages, in the encoding of ``loko-ref protocol``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from loko_ref import __version__
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.implementations.protocol import encode
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance
from loko_ref.conformance.mistakes.registry import all_mutants
from loko_ref.conformance.reports.literals import WIDTH, data, literal
from loko_ref.files.documents import document


def defaults(case: Case) -> tuple[str, ...]:
    """Return the names of the options that stand at their default."""
    return tuple(
        o.name
        for o in case.operation.options
        if o.default is not None and case.options[o.name] == o.default
    )


def covers(case: Case) -> str:
    """Return what a case is for: the known mistakes it covers, by name and id, or its text."""
    known = {one.id: one.name for one in all_mutants()}
    named = (f"{known[key]} ({key})" for key in case.recipe.covers)
    return "; ".join([*named, *([case.recipe.text] if case.recipe.text else [])])


def centred(case: Case) -> int:
    """Return how many columns of K each sample has where K is compared centred, else 0.  [OBS-5].

    Examples
    --------
    >>> from loko_ref.conformance.cases.registry import select
    >>> [centred(case) for case in select("loko.step/g*/float64")][:2]
    [3, 3]
    """
    K = expected(case).get("K")
    if K is None or canonical(case, "K", np.ones_like(K)).any():
        return 0
    return int(case.inputs()["y"].shape[-1])


# ------------------------------------------------------------------------------------- script

_HEAD = '''\
"""{id}

A case of loko_ref {version} ({catalogue}), as a program that needs NumPy alone.
{purpose}

    python THIS_FILE my_loko.py

takes OPERATION from my_loko.py's IMPLEMENTATION, calls it with the inputs below
and compares what it returns with the expected numbers. Exit code 0: right; 1:
wrong; 2: it offers no such operation, declines, or nothing could be judged.
"""

import copy
import importlib.util
import inspect
import os
import sys

import numpy as np

FILE = sys.argv[1] if len(sys.argv) > 1 else "my_loko.py"
OPERATION = "{operation}"
DTYPE = "{dtype}"
OUTPUTS = (
    {names}
)


def given(numbers):
    return np.array(numbers, dtype=DTYPE)


def wide(numbers):
    return np.array(numbers, dtype="float64")


inputs = {inputs}

options = {options}

# at their default: not passed to a function that has no parameter for them
defaults = {defaults}

# a function that has no parameter for one of these declines the case
declinable = {declinable}

# in dataflow order
expected = {expected}

# how far each element may be off; None: not judged
tolerance = {tolerance}

# where loko_ref derives each quantity: derivations/
labels = {labels}

# --------------------------------------------------------------------- the call

found = importlib.util.spec_from_file_location("implementation", FILE)
module = sys.modules["implementation"] = importlib.util.module_from_spec(found)
sys.path.insert(0, os.path.dirname(os.path.abspath(FILE)))
found.loader.exec_module(module)
if OPERATION not in module.IMPLEMENTATION:
    print(f"{{FILE}} offers no {{OPERATION}}")
    sys.exit(2)
function = module.IMPLEMENTATION[OPERATION]

try:
    taken = inspect.signature(function).parameters.values()
except (TypeError, ValueError):  # compiled code, which does not say
    options.update(defaults)
else:
    anything = any(p.kind is p.VAR_KEYWORD for p in taken)
    names = {{p.name for p in taken}}
    for name, value in defaults.items():
        if anything or name in names:
            options[name] = value
    for name in declinable:
        if not anything and name not in names:
            print(f"declined: it has no parameter {{name}}")
            sys.exit(2)

arguments = copy.deepcopy({{**inputs, **options}})
try:
    outputs = function(**arguments)
except NotImplementedError as error:
    print(f"declined: {{error}}")
    sys.exit(2)

# -------------------------------------------------------------- the comparison


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def fail(text):
    print(f"FAILED: {{text}}")
    sys.exit(1)


for name, value in inputs.items():
    if not same(value, arguments[name]):
        fail(f"changed its input {{name}} in place")
if arguments.get("spec") != options.get("spec"):
    fail("changed its option spec in place")
for name in outputs:
    if name not in OUTPUTS:
        fail(f"returned {{name!r}}, which is no output of {{OPERATION}}")

ratios, problem = {{}}, ""
for name, wanted in expected.items():
    if name not in outputs:
        print(f"{{name:14}} not returned")
        continue
    got = np.array(outputs[name])
    if got.shape != wanted.shape or got.dtype != DTYPE:
        problem = f"{{name}} has shape {{got.shape}} and dtype {{got.dtype}}, "
        problem += f"not {{wanted.shape}} and {{DTYPE}}"
        break
    if tolerance[name] is None:
        print(f"{{name:14}} not judged")
        continue
{centre}    with np.errstate(all="ignore"):
        ratio = np.abs(got.astype("float64") - wanted) / tolerance[name]
    ratios[name] = np.where(np.isfinite(got), ratio, np.inf)
    worst = ratios[name].max(initial=0.0)
    mark = "  off" if worst > 1 else ""
    print(f"{{name:14}} error / tolerance {{worst:.3g}}{{mark}}")

off = [name for name, ratio in ratios.items() if ratio.max(initial=0.0) > 1]
if off:
{first}    # the worst element; of those equal but for rounding the first
    index = np.unravel_index(np.argmax(ratio >= 0.9 * ratio.max()), ratio.shape)
    got = {got}
    came, wanted = float(got[index]), float(expected[name][index])
    place = f"{{name}}{{list(map(int, index))}}"
    fail(
        f"{{place}} first: expected {{wanted!r}}, got {{came!r}}, "
        f"an error of {{ratio[index]:.3g}} times its tolerance "
        + "".join(f" [{{label}}]" for label in labels[name].split())
    )
if problem:
    fail(problem)
if not ratios:
    if not set(outputs) & set(expected):
        fail(f"returned none of {{', '.join(expected)}}")
    print("no output of this case can be judged in this dtype")
    sys.exit(2)
print("right: every output that was returned is within its tolerance")
'''

_PLAIN = """\
    name = off[0]
    ratio = ratios[name]
"""

_STEPWISE = """\
    # the first index counts steps: the earliest step, in it the first name
    def first_step(name):
        late = ratios[name].reshape(len(ratios[name]), -1) > 1
        return int(late.any(axis=1).argmax())

    name = min(off, key=first_step)
    ratio = np.zeros_like(ratios[name])
    ratio[first_step(name)] = ratios[name][first_step(name)]
"""

_CENTRE = """\
    got = centre(name, got)
"""

_CENTRED = '''\
def centre(name, value):
    """K times ones is a convention: K is compared centred over each sample."""
    if name != "K":
        return value
    rows = value.astype("float64").reshape(*value.shape[:-1], -1, {C})
    return (rows - rows.mean(axis=-1, keepdims=True)).reshape(value.shape)


'''


def python(case: Case) -> str:
    """Write the script that reproduces a case.

    Returns
    -------
    str
        Python; it takes the file that holds ``IMPLEMENTATION`` as its argument.
    """
    at_default, C = defaults(case), centred(case)
    wanted, allowed = expected(case), tolerance(case)
    names = ", ".join(json.dumps(output.name) for output in case.operation.outputs) + ","
    purpose = textwrap.fill(
        "It covers: " + covers(case), WIDTH, break_on_hyphens=False, break_long_words=False
    )
    text = _HEAD.format(
        id=case.id,
        version=__version__,
        catalogue=CATALOGUE,
        purpose=purpose,
        operation=case.operation.name,
        dtype=case.dtype,
        inputs=literal(case.inputs(), "given", 0),
        options=data({k: v for k, v in case.options.items() if k not in at_default}),
        defaults=data({k: case.options[k] for k in at_default}),
        declinable=data(_declinable(case)),
        expected=literal(wanted, "wide", 0),
        tolerance=literal({name: allowed[name] for name in wanted}, "wide", 0),
        labels=data({name: _labels(case, name) for name in wanted}),
        names="\n    ".join(textwrap.wrap(names, WIDTH - 4, break_on_hyphens=False)),
        centre=_CENTRE if C else "",
        first=_STEPWISE if case.operation.stepwise else _PLAIN,
        got="centre(name, np.array(outputs[name]))" if C else "np.array(outputs[name])",
    )
    mark = "def fail(text):"
    return text.replace(mark, _CENTRED.format(C=C) + mark, 1) if C else text


def _declinable(case: Case) -> list[str]:
    """Name what the case gives and a function need not take: optional inputs, options set."""
    given, at_default = case.inputs(), defaults(case)
    optional = [i.name for i in case.operation.inputs if i.optional and i.name in given]
    chosen = [o.name for o in case.operation.options if o.default is not None]
    return [*optional, *(name for name in chosen if name not in at_default)]


def _labels(case: Case, name: str) -> str:
    return " ".join(case.operation.labels(name, case.options))


# ----------------------------------------------------------------------------------- document


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _encoded(item) for name, item in value.items()}
    return None if value is None else encode(np.asarray(value))


def as_json(case: Case) -> dict[str, Any]:
    """Write a case as the document ``loko-ref/case/1``.

    Returns
    -------
    dict
        Arrays as ``loko-ref protocol`` encodes them.
    """
    wanted, allowed, C = expected(case), tolerance(case), centred(case)
    content = {
        "id": case.id,
        "catalogue": CATALOGUE,
        "operation": case.operation.name,
        "dtype": case.dtype,
        "covers": list(case.recipe.covers),
        "text": case.recipe.text,
        "options": case.options,
        "defaults": list(defaults(case)),
        "inputs": _encoded(case.inputs()),
        "expected": _encoded(wanted),
        "tolerance": _encoded({name: allowed[name] for name in wanted}),
        "labels": {name: list(case.operation.labels(name, case.options)) for name in wanted},
        "stepwise": case.operation.stepwise,
        "centred": {"K": C} if C else {},
    }
    return document("case", content)
