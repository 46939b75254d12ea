"""Every option of every command against hostile values: one of our errors, or an honest run.

The generator walks the command tree, so a new option is tried without being named here. A case is a
command made cheap by its other options, with one option (sometimes two) set to a hostile value.
"""

import contextlib
import gc
import io
import json
import os
import random
import re
import runpy
import sys
from pathlib import Path

import pytest
import sampling
import typer
from hostile import needs_linux, run

from loko_ref.cli import main
from loko_ref.cli.app import app

pytestmark = needs_linux

COUNT = sampling.count(60, 600)

HUGE = "9" * 400
NEVER = {
    "empty": "",
    "space": " ",
    "newline": "\n",
    "NUL": "a\0b",
    "surrogate": "a\udcffb",
    "400 digits": HUGE,
    "5000 digits": "1" * 5000,
    "-400 digits": f"-{HUGE}",
    "nan": "nan",
    "inf": "inf",
    "-inf": "-inf",
    "1e999": "1e999",
    "1e-400": "1e-400",
    "long": "x" * 200_000,
    "deep": "[" * 20_000 + "]" * 20_000,
    "globs": "[" * 5000 + "*a" * 5000,
}
"""Values that nothing takes, by what they are."""

PERHAPS = {
    "unicode": "é☃😀",
    "digits of Arabic": "٣",
    "-1": "-1",
    "0": "0",
    "1e308": "1e308",
    "1e9": "1000000000",
    "2^31": "2147483648",
    "2^64": "18446744073709551616",
    "fraction": "0.5",
    "true": "true",
    "null": "null",
    "list": "[1, 2]",
    "mapping": '{"a": 1}',
    "markup": "[bold]x[/bold]",
    "unclosed": "[/bold]",
    "ANSI": "\x1b[31mx\x1b[0m",
    "word": "fp32",
    "capitals": "FLOAT64",
    "pair": "a=b",
    "empty pair": "=",
    "missing": "no/such/place.npz",
    "folder": ".",
    "under a device": "/dev/null/x.npz",
    "long name": "x" * 300 + ".npz",
    "option": "--json",
    "quote": "'",
    "format": "{0} %s %n",
}
"""Values that some option takes."""

PLACES = {
    *("folder", "answers", "baseline", "case", "save", "json", "json_file", "python", "junit"),
    *("html", "trace", "xfail"),
    *("plot", "checkpoint", "resume", "details", "file"),
}
"""Parameters that are paths: a file may have the name of a number."""

NAMES = {"nan", "inf", "-inf", "1e999", "1e-400"}


def commands():
    """Command's words -> its parameters, from the application itself."""

    def walk(command, words):
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words, [p for p in command.params if p.name not in ("help", "version")]
            return
        for name, below in inner.items():
            yield from walk(below, (*words, name))

    return dict(walk(typer.main.get_command(app), ()))


COMMANDS = commands()

CHEAP = {
    ("verify",): {"target": "mine.py", "only": "lora.delta", "dtype": "float64"},
    ("init",): {"language": "numpy", "file": "new.py"},
    ("operations",): {"name": "lora.delta"},
    ("case",): {"key": "lora.delta/tiny/float64"},
    ("mutants",): {"only": "P-FLOOR"},
    ("properties",): {"target": "mine.py", "only": "lora.delta/linear"},
    ("protocol",): {},
    ("vectors", "export"): {"folder": "new", "only": "lora.delta/*/float64"},
    ("vectors", "check"): {"folder": "absent"},
    ("vectors", "judge"): {"folder": "set", "answers": "answers.json"},
    ("vectors", "schema"): {},
    ("train",): {
        "data": "iris",
        "limit": "6",
        "optimizer": "sgd",
        "seed": "0",
    },
    ("compare", "online"): {
        "quick": "true",
        "stream": "iris invert",
        "seeds": "1",
        "limit": "2",
        "workers": "1",
    },
    ("compare", "lte"): {
        "quick": "true",
        "task": "digits, mlp",
        "seeds": "1",
        "resume": "absent.json",  # a hundred runs otherwise
    },
    ("compare", "report"): {"file": "absent.json"},
    ("explain",): {"data": "iris", "steps": "1"},
    ("lte",): {
        "data": "iris",
        "heads": "2",
        "rank": "1",
        "steps": "2",
        "batch": "4",
        "hidden": "4",
    },
    ("certify",): {"operation": "kalman.time_update", "dtype": "float32", "limit": "128"},
    ("bench",): {"config": "mlp_b1", "min_time": "0.001"},
    ("schema",): {"name": "verify"},
}
"""What makes a command cheap, by parameter."""

SLOW = {
    "steps",
    "score",
    "matrix",
    "calibration",
    "curves",
    "min_time",
    "as_json",
    "list_",
    "stop_after",
    "seeds",
    "workers",
    "task",
    "quick",
}
"""Parameters whose honest values take long: of these only what nothing takes is tried."""


def test_every_command_has_a_cheap_form():
    assert set(COMMANDS) == set(CHEAP)
    for words, cheap in CHEAP.items():
        assert set(cheap) <= {p.name for p in COMMANDS[words]}, words


def argv(words, values):
    """The command line with these values; arguments last, behind ``--``."""
    options, arguments = [], []
    for parameter in COMMANDS[words]:
        if parameter.name in values:
            if parameter.param_type_name == "argument":
                arguments.append(values[parameter.name])
            elif getattr(parameter, "is_flag", False):
                options.append(parameter.opts[-1])
            else:
                options.append(f"{parameter.opts[-1]}={values[parameter.name]}")
    return ["loko-ref", *words, *options, "--", *arguments]


def draw(rng):
    """One case: the command's words, its values, and what is hostile about each."""
    words = rng.choice([w for w in COMMANDS if options(w)])
    chosen = rng.sample(options(words), min(len(options(words)), rng.choice([1, 1, 1, 2])))
    values, kinds = dict(CHEAP[words]), {}
    for parameter in chosen:
        pool = NEVER if parameter.name in SLOW or rng.random() < 0.5 else PERHAPS
        kinds[parameter.name] = rng.choice(list(pool))
        values[parameter.name] = inside(rng, words, parameter.name, pool[kinds[parameter.name]])
        if (words, parameter.name) == (("verify",), "option"):
            values["trace"] = "trace.npz"
        if (words, parameter.name) == (("lte",), "size"):
            values.pop("hidden", None)
            values |= {"network": "vit", "data": "digits"}
    if {"trace", "cmd"} & set(values) and "target" not in kinds:
        values.pop("target", None)  # they take its place
    if "trace" in values:
        for name in {"only", "dtype"} - set(kinds):
            values.pop(name, None)
    return words, values, kinds


INNER = {
    (("verify",), "option"): ("beta", "lam", "q", "observation", "center", "form"),
    (("train",), "variant"): ("beta", "p0", "p0.0", "observation", "noise", "center", "lam"),
    (("train",), "optimizer"): ("sgd,lr", "adamw,beta1", "sgd,nesterov", "loko,p0"),
    (("train",), "lr"): ("sgd", "adamw"),
    (("explain",), "variant"): ("beta", "p0", "q", "r0", "form"),
    (("lte",), "optimizer"): ("adamw,eps", "sgd,nesterov", "loko,p0", "loko,center"),
    (("lte",), "lr"): ("adamw",),
    (("train",), "size"): ("layers", "patch"),
    (("lte",), "size"): ("layers", "width", "heads", "ff", "patch"),
    (("lte",), "hidden"): ("4,",),
    (("train",), "data"): ("mnist:", "glue:", "cifar10:"),
    (("lte",), "data"): ("mnist:", "glue:"),
}
"""Option of several words -> what stands before a hostile value in it."""


def inside(rng, words, parameter, value):
    """Put a value behind a name that the option knows, half of the time."""
    names = INNER.get((words, parameter))
    if names is None or rng.random() < 0.5:
        return value
    name = rng.choice(names)
    return f"{name}{value}" if name[-1] in ":," else f"{name}={value}"


def options(words):
    """Parameters of a command that take a value."""
    return [p for p in COMMANDS[words] if not getattr(p, "is_flag", False)]


def call(line, folder):
    os.chdir(folder)
    sys.argv = line
    os.environ["COLUMNS"] = "200"
    main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    (place / "mine.py").write_text(
        "def delta(A, B, alpha):\n    return {'delta': alpha / len(A) * (B @ A)}\n"
        "IMPLEMENTATION = {'lora.delta': delta}\n"
    )
    example = Path(__file__).parents[1] / "examples" / "record_trace.py"
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["record_trace.py", str(place / "trace.npz")])
        runpy.run_path(str(example))
    imports()
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.judge.tolerance import expected
    from loko_ref.conformance.vectors import vectors

    cases = select("lora.delta/tiny/float64")
    vectors.export(place / "set", cases)
    right = {c.id: {name: a.tolist() for name, a in expected(c).items()} for c in cases}
    (place / "answers.json").write_text(json.dumps(right))
    return place


def problem(words, values, kinds, outcome):
    """What is wrong with an outcome, or None."""
    if outcome.kind != "exit":
        return f"{outcome.kind}: {outcome.text}"
    if "Traceback" in outcome.printed:
        return outcome.printed
    if outcome.value not in (0, 1, 2, None):
        return f"exit code {outcome.value}"
    never = {
        name
        for name, kind in kinds.items()
        if kind in NEVER and not (name in PLACES and kind in NAMES)
    }
    if outcome.value in (0, 1, None):
        return f"silent acceptance of {never}" if never else None
    if re.search("[\x00-\x08\x0b-\x1f\x7f]", outcome.printed):
        return f"control characters: {outcome.printed!r}"
    if len(outcome.printed) > 6000:
        return f"an error of {len(outcome.printed)} characters"
    text = re.sub(r"[\s│]+", " ", outcome.printed)
    ours = re.search(r"loko-ref: .*: got .*; required .*Likely cause: ", text)
    usage = re.search(r"Usage: .*(Invalid value|Missing|No such|requires|Got unexpected)", text)
    numerical = re.search(r"loko-ref: (step \d+: )?\w+: (not finite|smallest eigenvalue)", text)
    nothing_ran = "0 passed" in text or "nothing ran" in text.lower()
    extra = re.search(r"loko-ref: .* needs the package .*: pip install", text)
    if not (ours or usage or extra or (numerical and not never) or nothing_ran):
        return f"no error of ours: {outcome.printed}"
    return None


def imports():
    """Import once what the commands import inside their functions."""
    for name in (
        "sklearn.datasets", "matplotlib.figure", "threadpoolctl", "jinja2", "flint",
        "rich.progress", "rich.table", "loko_ref.arrays.balls", "loko_ref.fast.bench",
        "loko_ref.conformance.vectors.certify", "loko_ref.conformance.diagnose.naming",
        "loko_ref.conformance.reports.page", "loko_ref.conformance.recorded",
        "loko_ref.conformance.assessment.score",
        "loko_ref.conformance.assessment.calibration", "loko_ref.conformance.vectors.vectors",
        "loko_ref.conformance.implementations.command", "loko_ref.experiments.lte.setup",
        "loko_ref.experiments.lte.report",
        "loko_ref.lte.mpi", "loko_ref.experiments.data.registry", "safetensors.numpy",
        "loko_ref.conformance.oracle.loko",
    ):  # fmt: skip
        __import__(name)
    from loko_ref.conformance.cases.registry import all_cases
    from loko_ref.conformance.mistakes.registry import all_mutants

    all_cases()
    all_mutants()
    for line in (["loko-ref", "lte", "--heads=x"], ["loko-ref", "schema", "verify"]):
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(SystemExit),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", line)
            main()
    gc.freeze()  # a fork that collects garbage would copy every page


@pytest.mark.skipif(not sampling.LONG, reason="the long part: each command runs once")
def test_the_cheap_forms_run(folder):
    for words, cheap in CHEAP.items():
        line = argv(words, cheap)
        done = run(lambda line=line: call(line, folder), memory=2**31)
        assert (done.kind, done.value) == ("exit", 2 if words[-1] == "check" else 0), (words, done)


def test_hostile_options(folder):
    rng, wrong = random.Random(sampling.SEED), []
    for _ in range(COUNT):
        words, values, kinds = draw(rng)
        line = argv(words, values)
        outcome = run(lambda line=line: call(line, folder))
        found = problem(words, values, kinds, outcome)
        if found is not None:
            wrong.append(f"{' '.join(words)} {kinds}: {found[:3000]}")
    assert not wrong, f"{len(wrong)} of {COUNT} ({sampling.repeat()}):\n" + "\n\n".join(wrong)
