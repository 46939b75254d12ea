"""`loko-ref explain`: every quantity, in order, equal to its equation, with a label that exists."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from loko_ref.cli import main
from loko_ref.errors import InputError, NumericalError
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.stream import prepare
from loko_ref.explain.steps import explain, parameter_name
from loko_ref.kalman.noise import combinations

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"data": "iris", "epochs": 3, "hidden": (16, 16)}
VARIANTS = [
    {"observation": o, "noise": n, "timing": t} for o, n, t in combinations() if o != "gaussian"
]
ORDER = ["theta", "p", "x", "z", "Z", "y", "yhat", "e", "H", "R", "S", "K", "theta+", "p+"]


def steps_of(options, count=2, **changed):
    config = RunConfig(optimizer="loko", options=options, **(SMALL | changed))
    return list(explain(config, steps=count))


def assert_holds(steps, kappa=1.0):
    """Every quantity equals its plain equation.

    The sums have at most n + m < 1000 terms, and S is solved with a condition number of at most
    `kappa` on the space where it acts: 8 * 1000 * kappa * eps of the largest entry.
    """
    bound = 8 * 1000 * kappa * np.finfo(float).eps
    for step in steps:
        for quantity in step.quantities:
            if quantity.residual is not None:
                assert quantity.residual <= bound, (quantity.name, quantity.residual)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: "-".join(v.values()))
@pytest.mark.parametrize("diagonal", ["decoupled", "variational"])
def test_every_variant_is_explained_in_order_and_holds(options, diagonal):
    steps = steps_of(options | {"diagonal": diagonal, "beta": 0.9})
    assert [step.number for step in steps] == [0, 1]
    for step in steps:
        names = [q.name for q in step.quantities]
        late = options["timing"] == "after"
        assert names == [*ORDER, "R+"] if late else names == ORDER
        for q in step.quantities:
            assert q.equation
            assert q.meaning.endswith((".", ")"))
            assert q.excerpt.values.shape == (len(q.excerpt.rows), len(q.excerpt.columns))
    assert_holds(steps)


@pytest.mark.parametrize("form", ["textbook", "joseph", "information"])
@pytest.mark.parametrize("observation", ["glm", "softmax"])
def test_dense_forms_hold(form, observation):
    steps = steps_of({"observation": observation, "covariance": "dense", "form": form})
    assert [q.name for q in steps[0].quantities][1] == "P"
    assert steps[0].quantities[-1].name == "P+"
    assert_holds(steps, kappa=10)


def test_regression_stacked_and_forgetting_hold():
    assert_holds(steps_of({"lam": 0.9, "q": 1e-3}, data="diabetes"))
    steps = steps_of({"observation": "softmax"}, batch=4)
    assert_holds(steps)
    assert steps[0].quantities[7].value.shape == (12,)
    assert "of 4 classified correctly" in steps[0].title


def test_labels_are_headings_of_the_derivations():
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "derivations").glob("*.md"))
    defined = set(re.findall(r"^### \[([A-Z]+-\d+)\]", text, re.MULTILINE))
    used = set()
    for options in [*VARIANTS, {"covariance": "dense"}, {"covariance": "dense", "form": "joseph"}]:
        (step,) = steps_of(options, count=1)
        used |= {label for q in step.quantities for label in q.labels}
    (step,) = steps_of({}, count=1, data="diabetes")
    used |= {label for q in step.quantities for label in q.labels}
    assert len(used) > 20
    assert used <= defined


def test_the_entries_shown_are_those_that_move_most_and_are_named():
    config = RunConfig(optimizer="loko", **SMALL)
    (step,) = explain(config, steps=1, entries=3)
    values = {q.name: q for q in step.quantities}
    moved = np.abs(values["theta+"].value - values["theta"].value)
    shown = values["theta+"].excerpt
    assert shown.values.size == 3
    kept = np.abs(shown.values - values["theta"].excerpt.values).min()
    assert (moved > kept).sum() < 3
    model = prepare(config).model
    n = len(moved)
    names = [parameter_name(model, k) for k in range(n)]
    assert len(set(names)) == n
    assert names[0] == "0.A[0,0]"
    assert names[-1] == "2.B[2,2]"  # three classes: rank 3
    assert shown.columns == values["H"].excerpt.columns == values["K"].excerpt.rows
    with pytest.raises(InputError, match="below n"):
        parameter_name(model, n)


def test_skipping_continues_the_stream():
    config = RunConfig(optimizer="loko", **SMALL)
    third = list(explain(config, steps=3))[2]
    (skipped,) = explain(config, steps=1, skip=2)
    for a, b in zip(third.quantities, skipped.quantities, strict=True):
        assert (a.value == b.value).all()


def test_by_default_it_starts_at_the_first_misclassified_sample():
    config = RunConfig(optimizer="loko", **SMALL)
    steps = list(explain(config, steps=50))
    wrong = [s.number for s in steps if not right(s)]
    (found,) = explain(config, steps=1, skip=None)
    assert found.number == wrong[0] > 0
    for a, b in zip(found.quantities, steps[wrong[0]].quantities, strict=True):
        assert (a.value == b.value).all()
    # too few steps are left after that sample: from the first
    assert [s.number for s in explain(config, steps=50, skip=None)] == list(range(50))
    config = RunConfig(optimizer="loko", **(SMALL | {"data": "diabetes"}))
    assert (
        next(explain(config, steps=1, skip=None)).number == 0
    )  # regression: none is misclassified


def test_a_step_that_overflows_is_an_error_that_names_it():
    """Without NumPy's warning before it, which the tests take for an error."""
    config = RunConfig(optimizer="loko", options={"p0": 1e308}, **SMALL)
    with pytest.raises(NumericalError, match=r"step \d: \w+: not finite"):
        list(explain(config, steps=3))


def right(step):
    true, predicted = re.search(r"true class (\d+), predicted class (\d+)", step.title).groups()
    return true == predicted


def test_a_confident_and_wrong_prediction_gets_a_remark():
    config = RunConfig(optimizer="loko", data="digits", seed=0)
    (step,) = explain(config, steps=1, skip=3)  # true class 0, predicted 4
    assert any("confident and wrong" in line and "[OBS-7]" in line for line in step.outcome)
    config = RunConfig(optimizer="loko", data="digits", options={"observation": "logits"})
    (step,) = explain(config, steps=1, skip=3)
    assert not any("[OBS-7]" in line for line in step.outcome)


def test_invalid_arguments_raise_with_their_names():
    config = RunConfig(optimizer="loko", **SMALL)
    with pytest.raises(InputError, match="steps"):
        list(explain(config, steps=0))
    with pytest.raises(InputError, match="at most 50"):
        list(explain(config, steps=2, skip=49))
    with pytest.raises(InputError, match="loko"):
        list(explain(RunConfig(optimizer="sgd", **SMALL)))


def run_cli(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["loko-ref", "explain", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return (stopped.value.code or 0, *capsys.readouterr())


def test_the_command_prints_where_it_starts(monkeypatch, capsys):
    code, out, err = run_cli(monkeypatch, capsys, "--steps", "1")
    assert (code, err) == (0, "")
    (number,) = re.findall(r"Starts at step (\d+), the first whose sample is misclassified", out)
    true, predicted = re.search(
        rf"step {number}: .*true class (\d), predicted class (\d)", out
    ).groups()
    assert true != predicted
    code, out, _ = run_cli(monkeypatch, capsys, "--steps", "1", "--skip", "0")
    assert "Starts at" not in out
    assert "step 0: sample 0" in out


def test_the_command_prints_two_steps_of_digits(monkeypatch, capsys):
    code, out, err = run_cli(monkeypatch, capsys, "--data", "digits", "--steps", "2")
    assert (code, err) == (0, "")
    assert out.count("Effects of this step") == 2
    at = [out.index(f"\n{k + 1:2d}. {name} (") for k, name in enumerate(ORDER)]
    assert at == sorted(at)
    assert "H (10 x 2344)" in out
    assert "[OBS-6]" in out
    assert "Sums to 0" in out
    assert "@@" in out  # the image itself
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--variant", "glm", "--variant", "softmax"], "one at a time"),
        (["--variant", "gaussian"], "real targets"),
        (["--data", "mnist"], "data"),
        (["--steps", "0"], "steps"),
        (["--backend", "nothing"], "backend"),
    ],
)
def test_the_command_rejects_invalid_options_in_one_sentence(monkeypatch, capsys, words, needle):
    code, _, err = run_cli(monkeypatch, capsys, *words)
    assert code == 2
    assert needle in err
    assert len(err.strip().splitlines()) == 1
