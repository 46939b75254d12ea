"""The kit on right and on broken implementations: the kit broken, these fail."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from command import loko_ref
from sampling import sample

from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS
from loko_ref.conformance.engine import judge, run, summarise
from loko_ref.conformance.implementations.python import load
from loko_ref.conformance.judge.compare import compare
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.reports import document as report
from loko_ref.errors import InputError
from loko_ref.files import documents as schema

pytestmark = pytest.mark.verdict
HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
TARGETS = HERE / "targets.py"
OP = "kalman.diagonal_update"


def outcome(attribute, only=f"{OP}/random/float64", timeout=20.0):
    """The single check of a broken target."""
    (check,) = run(load(f"{TARGETS}:{attribute}"), select(only), timeout=timeout)
    json.dumps(report.as_json("t", [check]), allow_nan=False)
    return check


def checks(attribute, only=f"{OP}*"):
    return run(load(f"{TARGETS}:{attribute}"), select(only))


def cli(*arguments, cwd=None):
    if cwd is None:
        return loko_ref("verify", *arguments)
    return subprocess.run(
        [sys.executable, "-m", "loko_ref", "verify", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.parametrize("path", [EXAMPLES / "my_loko.py", HERE / "einsum_loko.py"], ids=str)
def test_no_false_alarm(path):
    implementation = load(str(path))
    mine = [c for c in all_cases() if c.operation.name in implementation.functions]
    assert {c.operation.name.split(".")[0] for c in mine} >= {"kalman", "model", "loko"}
    mine = sample(mine, 0.15, by=lambda c: (c.operation.name, c.dtype))
    done = run(implementation, mine)
    known = [c for c in done if not c.case.newer(implementation.catalogue)]
    assert [c.case.id for c in known if c.status != "passed"] == []
    assert summarise(done).exit_code == 0
    assert len(done) >= 40
    # room to spare: another correct implementation stays inside too
    assert max(c.worst for c in done) < 0.9  # 0.80, in the implicit step at saturation


def test_a_stable_solve_is_right_in_a_short_run():
    """By the units of a long run alone its K stood at 0.94 to 1.02 tolerances.  [TOL-4]."""
    cases = select("loko.run/logits-fixed-before-variational-centred/float64")
    (done,) = run(load(str(HERE / "einsum_loko.py")), cases)
    assert done.status == "passed"
    assert done.worst < 0.7


def test_my_buggy_loko_is_caught_at_z():
    cases = sample(all_cases(), 0.15, by=lambda c: (c.operation.name, c.dtype))
    done = run(load(str(EXAMPLES / "my_buggy_loko.py")), cases)
    failed = [c for c in done if c.status == "failed"]
    assert {c.divergence.quantity for c in failed} == {"Z"}
    assert {c.case.operation.name for c in failed} == {"model.jacobian", "loko.step", "loko.run"}
    assert summarise(done).exit_code == 1
    # the original is untouched by its buggy sister
    again = run(load(str(EXAMPLES / "my_loko.py")), select("model.jacobian*"))
    assert summarise(again).exit_code == 0


def test_examples_share_no_code_with_the_package():
    for name in ("my_loko.py", "my_buggy_loko.py"):
        lines = (EXAMPLES / name).read_text().splitlines()
        assert not [x for x in lines if x.startswith(("import loko_ref", "from loko_ref"))]


@pytest.mark.parametrize(
    ("attribute", "kind", "message"),
    [
        ("RAISES", "raised", "raised RuntimeError: boom and more (targets.py, line"),
        ("EXITS", "raised", "raised SystemExit: 0 (targets.py, line"),
        ("MUTATES", "mutated", "changed its input 'p' in place"),
        ("MUTATES_A_BIT", "mutated", "changed its input 'theta' in place"),
        ("NOT_A_DICT", "result", "returned tuple in place of a mapping of named arrays"),
        (
            "NOTHING",
            "result",
            "returned none of S, K, theta, p; raise NotImplementedError to decline",
        ),
        (
            "EXTRA",
            "output",
            "returned 'Kk', which is no output of kalman.diagonal_update; the closest is 'K'",
        ),
        ("LIST", "output", "p: a list in place of an array"),
        ("NO_E", "signature", "the function takes no parameter 'e'"),
        (
            "UNREADABLE",
            "output",
            "p: cannot be read as a NumPy array: TypeError: it lives on the device (targets.py",
        ),
        ("SHAPE", "shape", "K has shape (3, 12), not (12, 3)"),
        ("DTYPE", "dtype", "p has dtype float16, not float64 as the inputs"),
    ],
)
def test_findings(attribute, kind, message):
    check = outcome(attribute)
    assert check.status == "failed"
    assert check.finding.kind == kind
    assert message in check.finding.message
    assert message in report.failure(check)


def test_widened_output_is_a_finding():
    check = outcome("WIDENED", f"{OP}/random/float32")
    assert check.finding.message == "theta has dtype float64, not float32 as the inputs"
    first = report.as_json("t", [check])["checks"][0]["first_divergence"]
    assert first["quantity"] == "theta"
    assert (first["expected"], first["got"], first["ratio"]) == ("float32", "float64", None)


@pytest.mark.parametrize("attribute", ["HANGS", "HANGS_STUBBORNLY"])
def test_a_hang_is_interrupted(attribute):
    check = outcome(attribute, timeout=0.2)
    assert check.finding.kind == "timeout"
    assert check.finding.message == "did not return within 0.2 s"


def test_not_finite():
    check = outcome("NAN")
    d = check.divergence
    assert (d.quantity, d.index) == ("theta", (1,))
    assert np.isnan(d.got)
    assert np.isinf(d.ratio)
    first = report.as_json("t", [check])["checks"][0]["first_divergence"]
    assert (first["got"], first["ratio"]) == ("nan", None)
    assert "is not finite" in report.failure(check)
    assert outcome("INF").divergence.quantity == "p"


def test_an_infinite_gain_on_the_simplex():
    """Its all-ones part, taken out, is infinite minus infinite."""
    (case,) = select("loko.step/glm/float64")
    outputs = {"K": np.full_like(expected(case)["K"], np.inf)}
    divergence, worst = compare(case, outputs)
    assert (divergence.quantity, worst) == ("K", np.inf)


def test_declined_is_unsupported_never_passed():
    done = checks("DECLINES")
    assert {c.status for c in done} == {"unsupported"}
    assert done[0].reason == "it declines (NotImplementedError: not yet)"
    summary = summarise(done)
    assert (summary.ran, summary.passed, summary.unsupported) == (0, 0, len(done))
    assert summary.exit_code == 2
    done = checks("DECLINES_FLOAT32")
    assert {(c.case.dtype, c.status) for c in done} == {
        ("float64", "passed"),
        ("float32", "unsupported"),
    }


def test_an_absent_operation_is_unsupported():
    done = run(load(str(TARGETS)), select("lora.delta*"))
    assert {c.status for c in done} == {"unsupported"}
    assert {c.reason for c in done} == {"the implementation has no such operation"}


def test_an_option_at_its_default_need_not_be_taken():
    done = checks("NO_OPTION")
    by = {c.case.id: c for c in done}
    assert by[f"{OP}/random/float64"].status == "passed"
    other = by[f"{OP}/random-variational/float64"]
    assert other.status == "unsupported"
    assert other.reason == ("it takes no option 'diagonal', which this case sets to 'variational'")


def test_a_subset_of_the_outputs_is_judged():
    check = outcome("SUBSET")
    assert check.status == "passed"
    assert check.quantities == ("p",)


def test_jitter_of_1e_9_is_caught_in_s():
    done = checks("JITTER", f"{OP}/*/float64")
    assert {c.status for c in done} == {"failed"}
    # S is off by it relative to what rounding may do, in every case
    assert {c.divergence.quantity for c in done} == {"S"}
    assert min(c.divergence.ratio for c in done) > 100


def test_the_wrong_diagonal_is_caught_in_p():
    done = [c for c in checks("WRONG_DIAGONAL") if "zero-column" not in c.case.id]
    assert {c.status for c in done} == {"failed"}
    assert {c.divergence.quantity for c in done} == {"p"}


def test_a_last_bit_is_no_error():
    assert {c.status for c in checks("ULP")} == {"passed"}


def test_first_quantity_in_dataflow_order_and_worst_element():
    case = select(f"{OP}/tiny/float64")[0]
    from loko_ref.conformance.judge.answer import Answer
    from loko_ref.conformance.judge.tolerance import expected

    outputs = {name: value.copy() for name, value in expected(case).items()}
    outputs["p"] *= 2
    outputs["K"] = outputs["K"] + np.array([[1e-9], [1e-6]])
    check = judge(case, Answer(outputs=outputs))
    assert check.divergence.quantity == "K"
    assert check.divergence.index == (1, 0)
    assert check.divergence.expected == expected(case)["K"][1, 0]
    assert check.divergence.got == outputs["K"][1, 0]
    assert check.divergence.labels == ("KAL-2",)
    assert check.worst > check.divergence.ratio  # p is farther off, but later


def test_a_run_is_walked_step_by_step():
    case = select("loko.run/glm/float64")[0]
    from loko_ref.conformance.judge.answer import Answer
    from loko_ref.conformance.judge.tolerance import expected

    outputs = {name: value.copy() for name, value in expected(case).items()}
    outputs["z"][5] += 1
    outputs["p"][3, 7] *= 1.01
    check = judge(case, Answer(outputs=outputs))
    assert check.divergence.quantity == "p"
    assert check.divergence.index == (3, 7)
    assert report.failure(check).startswith("first off: step 3, p[7]: expected ")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_file.py", "TARGET: got 'no_such_file.py'; required a file that exists"),
        ("no_such_module", "fails to import: ModuleNotFoundError"),
        (f"{TARGETS}:ABSENT", "without an attribute ABSENT"),
        (f"{TARGETS}:NOT_A_MAPPING", "NOT_A_MAPPING of type int"),
        (f"{TARGETS}:EMPTY", "EMPTY with the keys []"),
        (f"{TARGETS}:UNKNOWN", "the closest is 'kalman.diagonal_update'"),
        (f"{TARGETS}:NOT_CALLABLE", "NOT_CALLABLE['kalman.diagonal_update'] of type dict"),
    ],
)
def test_unusable(target, message):
    with pytest.raises(InputError) as error:
        load(target)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nothing_such",
            "ModuleNotFoundError: No module named 'nothing_such' (bad.py, line 1)",
        ),
        ("def f(:", "SyntaxError"),
        ("1/0", "ZeroDivisionError: division by zero (bad.py, line 1)"),
        ("import sys; sys.exit(3)", "SystemExit: 3 (bad.py, line 1)"),
        ("x = 1", "without an attribute IMPLEMENTATION"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    result = cli(path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_misspelt_operation_is_noted():
    implementation = load(f"{TARGETS}:MISSPELT")
    assert implementation.notes == (
        "'kalman.diagonal_updat' is no operation of the catalogue and was not run; "
        "the closest is 'kalman.diagonal_update'",
    )


def test_cli_passes_and_writes_json(tmp_path):
    out = tmp_path / "r.json"
    result = cli(EXAMPLES / "my_loko.py", "--only", "kalman.*", "--json", out, "-v")
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads(out.read_text())
    jsonschema.validate(document, schema.load("verify"))
    assert document["summary"]["failed"] == document["summary"]["unsupported"] == 0
    assert document["summary"]["ran"] == document["summary"]["passed"] == len(document["checks"])
    assert {c["operation"] for c in document["checks"]} == {
        name for name in OPERATIONS if name.startswith("kalman.")
    }
    assert "PASSED: " in result.stdout
    assert "unit roundoff" in result.stdout  # the tolerance is explained


def test_cli_fails_and_names_the_quantity(tmp_path):
    out = tmp_path / "r.json"
    result = cli(EXAMPLES / "my_buggy_loko.py", "--only", "model.*", "--json", out)
    assert result.returncode == 1
    document = json.loads(out.read_text())
    jsonschema.validate(document, schema.load("verify"))
    failed = [c for c in document["checks"] if c["status"] == "failed"]
    assert {c["first_divergence"]["quantity"] for c in failed} == {"Z"}
    assert "first off: Z[" in result.stdout
    assert "[LAY-9]" in result.stdout
    assert "--only model.jacobian/linear/float64" in result.stdout


def test_cli_nothing_ran():
    result = cli(f"{TARGETS}:DECLINES")
    assert result.returncode == 2
    assert "NOTHING RAN" in result.stdout


def test_cli_module_target(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "filter.py").write_text(
        "def delta(A, B, alpha):\n    return {'delta': alpha / len(A) * (B @ A)}\n"
        "OPS = {'lora.delta': delta}\n"
    )
    result = cli("mine.filter:OPS", "--dtype", "float64", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "PASSED: 4 of 4; " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "TARGET: got nothing"),
        ((TARGETS, "--only", "nothing"), "only: got 'nothing'"),
        ((TARGETS, "--dtype", "float16"), "dtype: got 'float16'"),
        ((TARGETS, "--timeout", "0"), "--timeout: got '0'"),
        ((TARGETS, "--only", f"{OP}/tiny/*", "--json", "/no/such/folder/r.json"), "--json: got"),
    ],
)
def test_cli_misuse(arguments, message):
    result = cli(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_cli_list():
    result = cli("--list", "--only", "lora.delta*", "--dtype", "float64")
    assert result.returncode == 0
    assert result.stdout.splitlines()[0].startswith("lora.delta/tiny/float64\t")
    assert len(result.stdout.splitlines()) == 4


def test_cli_operations():
    listed = loko_ref("operations")
    assert listed.returncode == 0
    assert re.findall(r"^([a-z]+\.\w+)  +\S", listed.stdout, re.M) == list(OPERATIONS)
    assert listed.stdout.count("\n") < 40
    result = loko_ref("operations", "*")
    assert result.returncode == 0
    assert "diagonal: one of decoupled, variational; default 'decoupled'" in result.stdout
    assert "lora.merge: fold LoRA into the weight" in result.stdout
    assert f"CATALOGUE = '{CATALOGUE}'" in " ".join(result.stdout.split())
    assert max(len(line) for line in (listed.stdout + result.stdout).splitlines()) <= 80
    result = loko_ref("operations", "kalman.time_updat")
    assert result.returncode == 2
    assert "the closest known name is 'kalman.time_update'" in result.stderr
