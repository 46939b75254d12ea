"""``loko-ref case``: what is printed of a case, and that its script reproduces the verdict."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from command import loko_ref
from sampling import count, sample

from loko_ref.conformance import engine
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.implementations.protocol import decode
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.conformance.reports import literals, snippet
from loko_ref.conformance.reports.case import describe
from loko_ref.conformance.user_inputs import user_case
from loko_ref.conformance.vectors.numbers import flatten

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = "lora.delta/tiny/float64"

# One case of each operation. The largest scripts run only at full length.
DRAWN = sample(
    [c for c in all_cases() if "transformer" not in c.id], 1, by=lambda case: case.operation.name
)
DRAWN = sample(DRAWN, 0.5)


def offered(operation, change=None):
    """An implementation of one operation: the oracle's numbers, perhaps changed."""

    def function(**given):
        options = {
            o.name: given.pop(o.name) for o in OPERATIONS[operation].options if o.name in given
        }
        (dtype,) = {a.dtype for value in given.values() for a in flatten("x", value).values()}
        wide = {
            name: {k: np.float64(a) for k, a in value.items()}
            if isinstance(value, dict)
            else np.float64(value)
            for name, value in given.items()
        }
        out = OPERATIONS[operation].oracle(wide, options)
        out = {name: np.array(a, dtype=dtype) for name, a in out.items()}
        return out if change is None else change(out, given, options)

    return {operation: function}


def outcome(case, mapping, folder):
    """Run the script in this process on a mapping: its exit code and what it printed."""
    script, target = folder / "case.py", folder / "target.py"
    script.write_text(snippet.python(case), encoding="utf-8")
    target.write_text("import a_test\nIMPLEMENTATION = a_test.IMPLEMENTATION\n")
    with (
        mock.patch.dict(sys.modules, a_test=mock.Mock(IMPLEMENTATION=mapping)),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.object(sys, "argv", [str(script), str(target)]),
        mock.patch("builtins.print") as printed,
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
    return code, "\n".join(str(call.args[0]) for call in printed.call_args_list)


def verdict(case, mapping):
    return engine.run(Implementation(target="a test", functions=mapping), [case])[0]


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case.id)
def test_the_script_finds_what_verify_finds(case, tmp_path):
    right = offered(case.operation.name)
    assert verdict(case, right).status == "passed"
    code, text = outcome(case, right, tmp_path)
    assert (code, text.splitlines()[-1][:6]) == (0, "right:"), text

    rng = np.random.default_rng(0)
    names = [name for name, a in expected(case).items() if a.size]
    wrong = set(rng.choice(names, min(2, len(names)), replace=False))

    def change(out, given, options):
        for name in wrong:
            where = tuple(rng.integers(size) for size in out[name].shape)
            out[name][where] += 1 + abs(out[name][where])
        return out

    drawn = {}

    def once(**given):  # the same answer for both
        if not drawn:
            drawn.update(offered(case.operation.name, change)[case.operation.name](**given))
        return {name: a.copy() for name, a in drawn.items()}

    found = verdict(case, {case.operation.name: once}).divergence
    code, text = outcome(case, {case.operation.name: once}, tmp_path)
    assert code == 1
    last = text.splitlines()[-1]
    assert last.startswith(f"FAILED: {found.quantity}{list(found.index)} first: expected ")
    assert f"an error of {found.ratio:.3g} times its tolerance" in last
    assert all(f"[{label}]" in last for label in found.labels)
    for name in wrong:
        assert re.search(rf"^{name} .*off$", text, re.MULTILINE)


def drop(out, given, options):
    return {}


def foreign(out, given, options):
    return out | {"gain": out["delta"]}


def transposed(out, given, options):
    return {"delta": out["delta"].T}


def single(out, given, options):
    return {"delta": out["delta"].astype(np.float32)}


def in_place(out, given, options):
    given["A"] *= 2
    return out


def not_finite(out, given, options):
    return {"delta": np.where(out["delta"] == 3, np.nan, out["delta"])}


def declines(out, given, options):
    raise NotImplementedError("not here")


@pytest.mark.parametrize("operation", ["loko.step", "loko.run"])
def test_a_gain_is_compared_up_to_its_convention(operation, tmp_path):
    (case,) = select(f"{operation}/glm/float64")

    def shifted(out, given, options):
        return out | {"K": out["K"] + 2.0**-12}

    mapping = offered(operation, shifted)
    assert verdict(case, mapping).status == "passed"
    assert outcome(case, mapping, tmp_path)[0] == 0
    assert snippet.as_json(case)["centred"] == {"K": case.inputs()["y"].shape[-1]}
    assert snippet.as_json(select("lora.delta/tiny/float64")[0])["centred"] == {}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (drop, 1, "returned none of delta"),
        (foreign, 1, "returned 'gain', which is no output of lora.delta"),
        (transposed, 1, "delta has shape (3, 2)"),
        (single, 1, "dtype float32"),
        (in_place, 1, "changed its input A in place"),
        (not_finite, 1, "delta[0, 1] first: expected 3.0, got nan, an error of inf times"),
        (declines, 2, "declined: not here"),
    ],
)
def test_the_script_finds_a_wrong_form(change, code, words, tmp_path):
    (case,) = select(TINY)
    mapping = offered("lora.delta", change)
    assert verdict(case, mapping).status == {1: "failed", 2: "unsupported"}[code]
    found, text = outcome(case, mapping, tmp_path)
    assert (found, words in text) == (code, True), text
    assert outcome(case, {"lora.merge": None}, tmp_path)[0] == 2


def test_an_option_at_its_default_is_left_out_where_it_is_not_taken(tmp_path):
    def forgets(p):
        return {"p_pred": p.copy()}

    mapping = {"kalman.time_update": forgets}
    for case in select("kalman.time_update"):
        at_default = case.options == {"lam": 1.0, "q": 0.0}
        code, text = outcome(case, mapping, tmp_path)
        assert (code == 0) == at_default, text
        assert verdict(case, mapping).status == ("passed" if at_default else "unsupported")


PARTS = ["kalman", "observation", "lora", "optimizer"], ["model.jacobian", "loko.step"]


@pytest.mark.parametrize("part", [part for some in PARTS for part in sample(some, 1)])
def test_the_script_runs_on_the_examples(part, tmp_path):
    case = sample([c for c in select(part) if "transformer" not in c.id], 1)[0]
    script = tmp_path / "case.py"
    done = loko_ref("case", case.id, "--python", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in ("my_loko.py", "my_buggy_loko.py"):
        words = [sys.executable, str(script), str(EXAMPLES / name)]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        found = engine.run(load(str(EXAMPLES / name)), [case])[0]
        assert ran.returncode == (found.status == "failed"), ran.stdout + ran.stderr
        assert ran.stderr == ""
        if found.divergence is None:
            assert ran.stdout.splitlines()[-1].startswith("right: ")
        else:
            assert f"FAILED: {found.divergence.quantity}[" in ran.stdout
        expect_wrong = name == "my_buggy_loko.py" and part in PARTS[1]
        assert (ran.returncode == 1) == expect_wrong


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case.id)
def test_script_and_document_hold_every_number_exactly(case):
    text = snippet.python(case)
    head = text[: text.index("\n", text.index("labels = "))]
    tree = ast.parse(text)
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert roots <= {*sys.stdlib_module_names, "numpy"}
    given = {}
    body = [n for n in ast.parse(text).body if n.lineno <= head.count("\n") + 1]
    exec(compile(ast.Module(body, []), "case.py", "exec"), given)
    document = json.loads(json.dumps(snippet.as_json(case)))
    for key, wanted in (
        ("inputs", case.inputs()),
        ("expected", expected(case)),
        ("tolerance", tolerance(case)),
    ):
        wanted, literal = flatten("", dict(wanted)), flatten("", given[key])
        assert list(wanted) == list(literal)

        def decoded(value):
            if "data" not in value:
                return {name: decoded(item) for name, item in value.items()}
            return decode(value, "a tensor")

        sent = flatten("", decoded(document[key]))
        assert set(sent) == set(wanted)
        for name, array in wanted.items():
            for other in (literal[name], sent[name]):
                assert (other.dtype, other.shape) == (array.dtype, array.shape), name
                assert other.tobytes() == np.ascontiguousarray(array).tobytes(), name
    assert {**given["options"], **given["defaults"]} == case.options == document["options"]
    assert sorted(given["defaults"]) == sorted(document["defaults"])
    assert (document["id"], document["dtype"]) == (case.id, case.dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_number_survives_as_a_literal(dtype):
    bits = np.random.default_rng(1).integers(0, 2**32, 2 * count(400, 20_000), dtype=np.uint32)
    info = np.finfo(dtype)
    edges = [0.0, -0.0, info.tiny, info.smallest_subnormal, info.max, info.min, 1 + info.eps, 1e22]
    values = np.concatenate([bits.view(dtype), np.array(edges, dtype=dtype)])
    for value in values[np.isfinite(values)]:
        text = literals.number(value)
        back = np.array([float(text)]).astype(dtype)
        assert back.tobytes() == value.tobytes(), text
    assert literals.number(np.float32(0.1)) == "0.1"


def test_empty_and_scalar_arrays_survive():
    names = {"given": lambda numbers: np.array(numbers, dtype="float64")}
    for array in (np.zeros((0, 3)), np.zeros((2, 0)), np.array(1.5), np.ones((1, 1, 1))):
        back = eval(literals.literal(array, "given", 0), {**names, "np": np})
        assert (back.shape, back.tobytes()) == (array.shape, array.tobytes())


def test_what_is_not_judged_is_no_failure(tmp_path):
    """A solve with rows of very different scales: S alone is judged.  [TOL-3]."""
    m = 3
    rng = np.random.default_rng(0)
    inputs = {
        "theta": np.zeros(m), "p": np.ones(m), "H": rng.normal(size=(m, m)), "e": np.ones(m),
        "R": np.diag([1.0, 1e6, 1e12]),
    }  # fmt: skip
    case = user_case("kalman.diagonal_update", inputs)
    assert tolerance(case)["K"] is None
    only = offered("kalman.diagonal_update", lambda out, given, options: {"K": 2 * out["K"]})
    code, text = outcome(case, only, tmp_path)
    assert (code, "not judged" in text) == (2, True), text
    assert snippet.as_json(case)["tolerance"]["K"] is None
    assert "not judged" in describe(case)


def test_the_command_prints_a_case():
    done = loko_ref("case", "lora.delta/tiny/*64", columns=80)
    assert (done.returncode, done.stderr) == (0, "")
    (case,) = select(TINY)
    assert done.stdout.startswith(describe(case))
    assert done.stdout.endswith(snippet.python(case))
    long = loko_ref("case", "loko.step/transformer/float64")
    assert "def given" not in long.stdout
    assert "--full prints it" in long.stdout
    full = loko_ref("case", "loko.step/transformer/float64", "--full").stdout
    assert full.endswith(snippet.python(select("loko.step/transformer/float64")[0]))
    assert not re.search(r"\d \.\.\. ", full)


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case.id)
def test_a_description_is_whole_and_fits_a_terminal(case):
    text = describe(case)
    lines = text.splitlines()
    assert lines[0] == case.id
    assert max(map(len, lines[1:])) <= 80
    assert max(map(len, snippet.python(case).splitlines()[2:])) <= 80
    flat = " ".join(text.split())
    assert case.recipe.text in flat
    assert all(f"({key})" in flat for key in case.recipe.covers)
    for option in case.operation.options:
        (line,) = [k for k in lines if re.match(rf"  {option.name} ", k)][:1]
        marked = line.endswith("(default)")
        if option.name != "spec":
            assert marked == (option.name in snippet.defaults(case)), line
            assert json.dumps(case.options[option.name]) in line
    for name, value in expected(case).items():
        assert re.search(rf"^  {name} .* = {re.escape(str(value.shape))}: ", text, re.MULTILINE)
        labels = " ".join(f"[{k}]" for k in case.operation.labels(name, case.options))
        assert labels in flat
    for name, array in flatten("", case.inputs()).items():
        assert f"{name.removeprefix('.').partition('.')[2] or name[1:]} " in text
        assert str(array.shape) in text


def test_a_network_is_printed_layer_by_layer():
    text = describe(select("loko.step/transformer-residual/float64")[0])
    for line in (
        "  residual: x + f(x), f being",
        "    0: attention, 2 heads",
        "      0.q: 4 -> 4, bias, LoRA r = 1, alpha = 2 (alpha/r = 2)",
        "  head.out: linear 4 -> 3, bias",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["loko.step/glm"], ["matches 2 cases", "loko.step/glm/float64, loko.step/glm/float32"]),
        (["*"], [f"matches {len(all_cases())} cases", f"and {len(all_cases()) - 8} more"]),
        (["loko.step/gml/float64"], ["the closest known name is 'loko.step/glm/float64'"]),
        ([""], ["an empty value"]),
        ([TINY, "--python", "no/such/f.py"], ["--python: got", "an existing directory"]),
        ([TINY, "--python", "a.py", "--json", "a.py"], ["the file of --python"]),
        ([TINY, "--json", os.sep], ["--json: got", "a directory"]),
    ],
)
def test_errors_are_one_sentence(words, pieces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = loko_ref("case", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(piece in done.stderr for piece in pieces), done.stderr
    assert not list(tmp_path.iterdir())
