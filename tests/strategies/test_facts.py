"""The public facts of one update: right filters have them, each wrong one lacks some."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings

from loko_ref import strategies as st
from loko_ref.kalman import dense, diagonal
from loko_ref.strategies import facts


def right(theta, p, H, e, R, kind="decoupled"):
    new = diagonal.update(theta, p, H, e, R, diagonal=kind)
    return {"theta": new.theta, "p": new.p}


def right_dense(theta, P, H, e, R, form="textbook"):
    new = dense.update(theta, P, H, e, R, form=form)
    return {"theta": new.theta, "P": new.P}


@pytest.mark.sampled(0.5, by=lambda fact, **_: fact)
@pytest.mark.parametrize("kind", ["decoupled", "variational"])
@pytest.mark.parametrize("fact", facts.DIAGONAL)
@given(problem=st.diagonal_problems(cond=1e6))
def test_the_diagonal_filters_have_every_fact(fact, kind, problem):
    facts.DIAGONAL[fact](lambda **a: right(**a, kind=kind), problem, diagonal=kind)


@pytest.mark.sampled(0.5, by=lambda fact, **_: fact)
@pytest.mark.parametrize("form", ["joseph", "textbook"])
@pytest.mark.parametrize("fact", facts.DENSE)
@given(problem=st.dense_problems(cond=1e4))
def test_the_dense_filters_have_every_fact(fact, form, problem):
    facts.DENSE[fact](lambda **a: right_dense(**a, form=form), problem)


def gain(theta, p, H, e, R):
    S = (H * p) @ H.T + R
    return np.linalg.solve(S, H * p).T


def moves(theta, p, H, e, R):
    """A drift of theta, as weight decay would make it."""
    out = right(theta, p, H, e, R)
    return out | {"theta": out["theta"] + theta.dtype.type(0.25)}


def adaptive(theta, p, H, e, R):
    """Variances inflated by the innovation."""
    out = right(theta, p, H, e, R)
    return out | {"p": out["p"] * (1 + abs(e).max())}


def clipped(theta, p, H, e, R):
    """A step that is clipped."""
    out = right(theta, p, H, e, R)
    return out | {"theta": theta + np.clip(out["theta"] - theta, -0.125, 0.125)}


def sequential(theta, p, H, e, R):
    """Outputs one by one: the order matters to a diagonal filter."""
    start, p = theta, p.copy()
    for j, h in enumerate(H):
        k = p * h / (h @ (p * h) + R[j, j])
        theta = theta + k * (e[j] - h @ (theta - start))
        p = p * (1 - k * h)
    return {"theta": theta, "p": p}


def diagonal_noise(theta, p, H, e, R):
    return right(theta, p, H, e, np.diag(np.diagonal(R)))


def jitter(theta, p, H, e, R):
    return right(theta, p, H, e, R + np.eye(len(R), dtype=R.dtype) * R.dtype.type(0.125))


def process_noise(theta, p, H, e, R):
    out = right(theta, p, H, e, R)
    return out | {"p": out["p"] + p.dtype.type(0.125)}


def floor(theta, p, H, e, R):
    out = right(theta, p, H, e, R)
    return out | {"p": np.maximum(out["p"], p.dtype.type(0.5))}


def overshoots(theta, p, H, e, R):
    K = gain(theta, p, H, e, R)
    return {"theta": theta + K @ e, "p": p * (1 - 4 * (K * H.T).sum(axis=1))}


def refuted(fact, update, strategy):
    """Whether some drawn problem refutes a fact."""

    @settings(phases=[Phase.generate], max_examples=30)
    @given(problem=strategy)
    def holds(problem):
        fact(update, problem)

    try:
        holds()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("update", "some"),
    [
        (moves, {"still", "unseen"}),
        (adaptive, {"blind", "shrinks"}),
        (clipped, {"linear", "rescaled"}),
        (sequential, {"permuted", "mixed"}),
        (diagonal_noise, {"mixed"}),
        (jitter, {"mixed"}),
        (process_noise, {"unseen", "shrinks", "rescaled"}),
        (floor, {"unseen", "rescaled"}),
        (overshoots, {"shrinks"}),
    ],
)
def test_a_wrong_filter_lacks_a_fact(update, some):
    strategy = st.diagonal_problems(cond=1e2, dtype="float64")
    assert {k for k in some if refuted(facts.DIAGONAL[k], update, strategy)} == some


def dropped(theta, P, H, e, R):
    """Only P's diagonal kept."""
    out = right_dense(theta, P, H, e, R)
    return out | {"P": np.diag(np.diagonal(out["P"]))}


def lopsided(theta, P, H, e, R):
    out = right_dense(theta, P, H, e, R)
    return out | {"P": np.triu(out["P"])}


def no_noise(theta, P, H, e, R):
    """Joseph's form without K R K'."""
    K = np.linalg.solve(H @ P @ H.T + R, H @ P).T
    left = np.eye(len(P)) - K @ H
    return {"theta": theta + K @ e, "P": left @ P @ left.T}


@pytest.mark.parametrize(
    ("update", "some"),
    [(dropped, {"turned", "one by one"}), (lopsided, {"shrinks"}), (no_noise, {"one by one"})],
)
def test_a_wrong_dense_filter_lacks_a_fact(update, some):
    strategy = st.dense_problems(cond=1e2, dtype="float64")
    assert {k for k in some if refuted(facts.DENSE[k], update, strategy)} == some


def test_a_refuted_fact_is_stated_with_its_label_and_place():
    problem = st.DiagonalProblem(
        theta=np.zeros(2), p=np.ones(2), H=np.ones((1, 2)), e=np.ones(1), R=np.eye(1)
    )
    with pytest.raises(AssertionError) as error:
        facts.DIAGONAL["still"](moves, problem)
    assert str(error.value).startswith(
        "e = 0 leaves theta unchanged  [KAL-2]: at theta[0] 0.25, at most "
    )

    def nan(**keywords):
        return right(**keywords) | {"p": np.array([1.0, np.nan])}

    with pytest.raises(AssertionError, match=r"0 < p\+ <= p  \[DIAG-4\]: at p\[1\] nan"):
        facts.DIAGONAL["shrinks"](nan, problem)
