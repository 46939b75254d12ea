"""What came after operations/1 is asked of code that knows it; no old adapter begins to fail."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sampling import sample

from loko_ref.conformance.cases import registry
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.catalogue.registry import CATALOGUE, VERSION
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.implementations.python import call, hold, load
from loko_ref.conformance.pytest_plugin import assert_correct, parametrize
from loko_ref.conformance.reports import expected_failures
from loko_ref.errors import InputError

HERE = Path(__file__).parent
OLD = HERE / "adapter_operations_1.py"
NEW = [c for c in all_cases() if c.newer(1)]


def test_an_adapter_of_operations_1_does_not_begin_to_fail():
    old = load(str(OLD))
    assert old.catalogue == 1
    cases = [c for c in all_cases() if c.operation.name in old.functions and c not in NEW]
    short = [c for c in cases if c.operation.name != "loko.run" or c.recipe.shared]
    cases = sample(short, 2, by=lambda c: c.operation.name)
    assert {c.status for c in run(old, cases)} == {"passed"}
    new = run(old, [c for c in NEW if c.operation.name in old.functions])
    assert len(new) >= 20
    assert {c.status for c in new} == {"unsupported"}
    parts = [c.reason.partition(", which came after operations/1") for c in new
             if c.case.operation.name == "loko.step"]  # fmt: skip
    assert all(came for _, came, _ in parts)
    named = {name for start, _, _ in parts for name in start.split(" know ")[1].split(", ")}
    assert named == {"solve", "train", "U", "W", "blocks"}


def test_a_command_of_operations_1_is_sent_nothing_newer(tmp_path):
    harness = HERE.parents[1] / "examples" / "harness.py"
    with Command(f"{sys.executable} {harness} {OLD}") as command:
        assert command.catalogue == 1
        cases = [*select("kalman.time_update/*/float64"), *select("loko.step/glm/float64")]
        cases += select("loko.step/weights-glm/float64")
        checks = run(command, cases)
    assert {c.status for c in checks if c.case not in NEW} == {"passed"}
    assert {c.status for c in checks if c.case in NEW} == {"unsupported"}


def test_who_states_the_version_or_names_the_parameter_is_asked():
    case = select("loko.step/weights-logits-dense/float64")[0]
    given = {}

    def named(train="factors", **keywords):
        given["train"] = train
        return {}

    def everything(**keywords):
        given.update(keywords)
        return {}

    assert call(named, case, catalogue=1).declined is None
    assert given.pop("train") == "weights"
    assert "state CATALOGUE" in call(everything, case, catalogue=1).declined
    assert not given
    assert call(everything, case).declined is None
    assert given["train"] == "weights"
    given.clear()
    call(everything, select("loko.step/glm/float64")[0], catalogue=1)
    assert "train" not in given
    assert given["lam"] == 1.0
    assert call(everything, case, catalogue=2).declined is None  # the implicit step came with 3
    assert "solve" not in given
    newer = select("loko.step/implicit/float64")[0]
    assert "solve, which came after operations/2" in call(everything, newer, catalogue=2).declined
    assert call(everything, newer).declined is None
    assert (given["solve"], given["train"]) == ("implicit", "factors")


def test_a_stated_version_is_checked():
    mapping = {"lora.delta": lambda A, B, alpha: {}}
    holder = SimpleNamespace(IMPLEMENTATION=mapping, CATALOGUE="operations/4")
    with pytest.raises(InputError, match="CATALOGUE: got 'operations/4'; required one of oper"):
        hold(holder, "x")
    assert hold(mapping, "x").catalogue == 1
    assert f"operations/{VERSION}" == CATALOGUE


def time_update(p, lam, q):
    return {"p_pred": (p / lam + q).astype(p.dtype)}


@parametrize("kalman.time_update")
def test_a_test_of_operations_1(case):
    """A user's own: it knows no P."""
    assert_correct(case, time_update(**case.inputs(), **case.options))


def test_a_test_of_a_version_has_the_options_of_its_own():
    (marked,) = parametrize("model.jacobian/tanh/float64").args[1:]
    assert set(marked[0].options) == {"spec"}
    (marked,) = parametrize("model.jacobian/weights*", catalogue=CATALOGUE).args[1:]
    assert {c.options["train"] for c in marked} == {"weights"}


def test_a_renamed_case_is_found_by_its_old_name(monkeypatch):
    monkeypatch.setitem(registry.ALIASES, "lora.delta/small", "lora.delta/tiny")
    assert [c.id for c in select("lora.delta/small/float32")] == ["lora.delta/tiny/float32"]
    assert len(select("lora.delta/small")) == 2
    listed = expected_failures.read({"lora.delta/small/float64": "why"})
    assert listed == {"lora.delta/tiny/float64": "why"}


def test_every_id_of_before_is_there():
    """Ids are permanent: of each operation the oldest, and those that were ever withdrawn."""
    ids = {c.id for c in all_cases()}
    for operation, name in {
        "kalman.dense_update": "tiny",
        "kalman.diagonal_update": "random-variational",
        "kalman.time_update": "process-noise",
        "observation.softmax": "saturated",
        "noise.update": "beta-half-one-output",
        "lora.merge": "untrained",
        "model.jacobian": "some-sites",
        "loko.step": "softmax-residual",
        "loko.run": "glm-forgetting",
        "optimizer.adamw": "long",
    }.items():
        assert {f"{operation}/{name}/{dtype}" for dtype in ("float64", "float32")} <= ids
    assert "lora.delta/untrained/float64" not in ids
