"""Inputs of one's own are judged as the catalogue's are, by a tolerance computed from them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.conformance.user_inputs import agree, check, user_case
from loko_ref.errors import InputError

HERE = Path(__file__).parent
UPDATE = "kalman.diagonal_update"


def functions(path):
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.IMPLEMENTATION


RIGHT = functions(HERE.parents[1] / "examples" / "my_loko.py")
EINSUM = functions(HERE / "einsum_loko.py")


@pytest.mark.parametrize("implementation", [RIGHT, EINSUM], ids=["my_loko", "einsum"])
@pytest.mark.parametrize("diagonal", ["decoupled", "variational"])
@given(problem=st.diagonal_problems(max_n=6, max_m=4, cond=1e8))
def test_right_code_agrees_whatever_is_drawn(implementation, diagonal, problem):
    agree(implementation[UPDATE], UPDATE, problem.arguments(), diagonal=diagonal)


@given(problem=st.dense_problems(cond=1e6), data=hs.data())
def test_a_wrong_gain_is_caught_at_k(problem, data):
    def wrong(**keywords):
        out = RIGHT["kalman.dense_update"](**keywords)
        return {**out, "K": out["K"] * out["K"].dtype.type(1.1)}

    assume(np.abs(problem.H).max() > 0)
    name = "kalman.dense_update"
    assume(check(RIGHT[name], name, problem.arguments()).status == "passed")
    case = user_case(name, problem.arguments())
    bound = tolerance(case)["K"]
    assume(bound is not None and (np.abs(0.1 * expected(case)["K"]) > 2 * bound).any())
    with pytest.raises(AssertionError, match=r"kalman.dense_update/own/float\d\d: first off: K\["):
        agree(wrong, name, problem.arguments())


def test_the_catalogues_own_inputs_are_judged_alike():
    (case,) = select(f"{UPDATE}/random/float64")
    own = user_case(UPDATE, case.inputs())
    assert own.id == f"{UPDATE}/own/float64"
    assert own.options == case.options
    for name, value in expected(case).items():
        assert (expected(own)[name] == value).all()
        # other random draws: the unit is of the same size
        ratio = tolerance(own)[name] / tolerance(case)[name]
        assert 1 / 32 < ratio.min() <= ratio.max() < 32


def test_a_mistake_is_named():
    def jitter(theta, p, H, e, R):
        R = R + 1e-6 * np.eye(len(R))
        return RIGHT[UPDATE](theta=theta, p=p, H=H, e=e, R=R)

    rng = np.random.default_rng(1)
    arguments = {"theta": np.zeros(5), "p": np.ones(5), "H": rng.standard_normal((2, 5))}
    arguments |= {"e": np.ones(2), "R": np.eye(2)}
    outcome = check(jitter, UPDATE, arguments)
    assert outcome.divergence.quantity == "S"
    (fits,) = name_mistakes([outcome]).values()
    assert fits[0].mutant.id in ("S-JITTER", "R-JITTER")
    assert fits[0].size == pytest.approx(1e-6, rel=1e-3)


def test_declining_is_no_agreement():
    def declines(**keywords):
        raise NotImplementedError("later")

    with pytest.raises(AssertionError, match=r"it declines \(NotImplementedError: later\)"):
        agree(declines, "kalman.time_update", {"p": np.ones(2)})


def test_where_no_digit_is_left_nothing_is_judged():
    """Two outputs whose scales differ by 1e9: a stable solve may lose K's small row."""
    arguments = {
        "theta": np.zeros(2),
        "p": np.ones(2),
        "H": np.array([[1e9, 1.0], [1.0, 1.0]]),
        "e": np.ones(2),
        "R": np.eye(2),
    }

    def only_gain(**keywords):
        return {"K": RIGHT[UPDATE](**keywords)["K"]}

    assert check(only_gain, UPDATE, arguments).status == "unsupported"
    with pytest.raises(InputError, match=r"\(K\) can be judged"):
        agree(only_gain, UPDATE, arguments)
    assert agree(RIGHT[UPDATE], UPDATE, arguments).status == "passed"  # S is judged


def test_the_callers_arrays_are_left_alone():
    p = np.ones(3)
    p.flags.writeable = False

    def writes(p, lam, q):
        p *= 2
        return {"p_pred": p / 2}

    with pytest.raises(AssertionError, match="changed its input 'p' in place"):
        agree(writes, "kalman.time_update", {"p": p})
    assert (p == 1).all()


@pytest.mark.parametrize(
    ("operation", "change", "message"),
    [
        ("kalman.updat", {}, "the closest known name is"),
        (UPDATE, {"Q": np.ones(2)}, "an argument of kalman.diagonal_update: got 'Q'"),
        (UPDATE, {"p": None}, "kalman.diagonal_update: got no 'p'"),
        (UPDATE, {"p": np.ones(2, np.float32)}, r"dtypes \['float32', 'float64'\]"),
        (UPDATE, {"diagnal": "x"}, "the closest known name is 'diagonal'"),
        ("lora.delta", {}, "an argument of lora.delta"),
    ],
)
def test_faulty_arguments_are_refused(operation, change, message):
    arguments = {"theta": np.zeros(2), "p": np.ones(2), "H": np.ones((1, 2))}
    arguments |= {"e": np.ones(1), "R": np.eye(1)} | change
    arguments = {k: v for k, v in arguments.items() if v is not None}
    with pytest.raises(InputError, match=message):
        user_case(operation, arguments)
