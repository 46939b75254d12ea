"""Right updates by many routes pass every case of the filter, on any machine.  [TOL-4, TOL-5].

Ways to solve with S that are backward stable, or stable in norm, and ways to go on from the gain;
an explicit inverse and P - K S K' among them, which lose most where the leverage nears one.
"""

import json

import numpy as np
import pytest
import scipy.linalg

from loko_ref.conformance import recorded, user_inputs
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import judge
from loko_ref.conformance.implementations import recording
from loko_ref.conformance.judge.answer import Answer
from loko_ref.conformance.judge.compare import compare
from loko_ref.conformance.judge.tolerance import expected, tolerance, unit
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

pytestmark = pytest.mark.verdict

LEVERAGE = "kalman.diagonal_update/high-leverage/float64"


def by_cholesky(PH, S):
    return scipy.linalg.cho_solve(scipy.linalg.cho_factor(S), PH.T).T


def by_qr(PH, S):
    Q, T = np.linalg.qr(S)
    return scipy.linalg.solve_triangular(T, Q.T @ PH.T).T


def by_eigenvalues(PH, S):
    values, V = np.linalg.eigh(S)
    return PH @ ((V / values) @ V.T)


GAINS = {
    "lu": lambda PH, S: np.linalg.solve(S, PH.T).T,
    "cholesky": by_cholesky,
    "qr": by_qr,
    "eigenvalues": by_eigenvalues,
    "inverse": lambda PH, S: PH @ np.linalg.inv(S),
    "pseudoinverse": lambda PH, S: PH @ np.linalg.pinv(S, rcond=1e-15),
}


def joseph(P, H, K, S, R):
    F = np.eye(len(P), dtype=P.dtype) - K @ H
    return F @ P @ F.T + K @ R @ K.T


POSTERIORS = {
    "plain": lambda P, H, K, S, R: P - K @ H @ P,
    "factored": lambda P, H, K, S, R: (np.eye(len(P), dtype=P.dtype) - K @ H) @ P,
    "by S": lambda P, H, K, S, R: P - K @ S @ K.T,
    "joseph": joseph,
}


def update(x, solve, posterior, diagonal=None):
    """Answer a case; a diagonal P is handled as the matrix that it is."""
    P = x["P"] if "P" in x else np.diag(x["p"])
    H, R = x["H"], x["R"]
    PH = P @ H.T
    S = H @ PH + R
    K = solve(PH, S)
    out = {"S": S, "K": K, "theta": x["theta"] + K @ x["e"]}
    if diagonal == "variational":
        return out | {"p": 1 / (1 / x["p"] + (H * np.linalg.solve(R, H)).sum(axis=0))}
    new = posterior(P, H, K, S, R)
    return out | ({"P": new} if "P" in x else {"p": np.diag(new)})


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("gain", GAINS)
def test_a_stable_solve_is_right_whatever_route_follows(gain, posterior):
    cases = select("kalman.dense_update") + select("kalman.diagonal_update")
    assert len(cases) > 40
    worst = {}
    for case in cases:
        # a stranger's program: its numbers are judged, not flags that a BLAS kernel may raise for
        # the unused lanes of its registers
        with np.errstate(invalid="ignore"):
            answer = update(
                case.inputs(), GAINS[gain], POSTERIORS[posterior], case.options.get("diagonal")
            )
        worst[case.id] = compare(case, answer)[1]
    assert max(worst.values()) <= 0.8, max(worst, key=worst.get)


def test_what_follows_a_right_gain_is_right():
    """K off by one of its units, each entry by itself, moves p by about one of p's units."""
    (case,) = select(LEVERAGE)
    x, K, units = case.inputs(), expected(case)["K"], unit(case)
    moves = []
    for seed in range(200):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], K.shape)
        p = x["p"] * (1 - ((K + signs * units["K"].size) * x["H"].T).sum(axis=1))
        moves.append((p - expected(case)["p"]) / units["p"].size)
    root = np.sqrt(np.mean(np.square(moves), axis=0))
    assert np.all(root < 1.5)
    assert root[0] > 0.6  # there it is what the unit consists of
    assert tolerance(case)["p"][0] < 1e-7 * expected(case)["p"][0]


@pytest.mark.parametrize("gain", ["inverse", "eigenvalues"])
@pytest.mark.parametrize(("off", "status"), [(0.0, "passed"), (1e-7, "failed")])
def test_a_recording_without_its_gain_is_judged_alike(gain, off, status, tmp_path):
    (case,) = select(LEVERAGE)
    x = case.inputs()
    out = update(x, GAINS[gain], POSTERIORS["by S"])
    step = {"theta": x["theta"], "p": x["p"], "p_pred": x["p"], "H": x["H"], "S": out["S"]}
    record = {f"0/{k}": a for k, a in step.items()}
    record |= {"0/Z": x["H"], "0/R": x["R"], "1/theta": out["theta"], "1/p": out["p"] * (1 + off)}
    options = json.dumps({"observation": "gaussian", "noise": "fixed"})
    np.savez(tmp_path / "t.npz", options=np.array(options), **record)
    checks = {c.case.id: c for c in recorded.check(recording.read(tmp_path / "t.npz"))}
    assert checks["trace/1/p"].status == status


def powers(beta, steps):
    return [1 - beta**t for t in range(1, steps + 1)]


def products(beta, steps):
    return list(1 - np.cumprod(np.full(steps, beta)))


@pytest.mark.parametrize("corrections", [powers, products])
@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_adamw_with_literal_corrections_is_right_wherever_it_begins(dtype, scale, corrections):
    """As torch has it: from theta = 0 nothing hides the last digits of a step.  [TOL-7]."""

    def adamw(theta, gradient, lr, beta1, beta2, eps, weight_decay):
        f, m, v, rows = theta.dtype.type, np.zeros_like(theta), np.zeros_like(theta), []
        ones, twos = (corrections(beta, len(gradient)) for beta in (beta1, beta2))
        for g, one, two in zip(gradient, ones, twos, strict=True):
            m = m + (g - m) * f(1 - beta1)
            v = f(beta2) * v + g * g * f(1 - beta2)
            root = np.sqrt(v) / f(two**0.5) + f(eps)
            theta = theta * f(1 - lr * weight_decay) - f(lr / one) * (m / root)
            rows.append(theta)
        return {"theta": np.stack(rows)}

    for seed in range(4):
        r = np.random.default_rng(seed)
        arrays = {"theta": scale * r.standard_normal(8), "gradient": r.standard_normal((4, 8))}
        arrays = {k: a.astype(dtype) for k, a in arrays.items()}
        check = user_inputs.check(adamw, "optimizer.adamw", arrays, lr=0.02, weight_decay=0.01)
        assert check.status == "passed"
        assert check.worst < 0.1


# ------------------------------------------------------------------- gains on the simplex


def by_singular_values(PH, S, C, t=None):
    """``P H' (S + t 11')^-1``, the inverse by singular values."""
    t = np.trace(S) / len(S) if t is None else t
    U, s, V = np.linalg.svd(S + t * np.kron(np.eye(len(S) // C), np.ones((C, C))))
    return PH @ (V.T @ (U.T / s[:, None]))


def by_contrasts(PH, S, C):
    Q = np.kron(np.eye(len(S) // C), scipy.linalg.helmert(C))
    return PH @ Q.T @ np.linalg.inv(Q @ S @ Q.T) @ Q


SIMPLEX = {
    "singular values": by_singular_values,
    "singular values, t = 1": lambda PH, S, C: by_singular_values(PH, S, C, 1.0),
    "contrasts": by_contrasts,
}


def with_gain(case, gain):
    """Answer by the textbook with another gain, K and what follows it."""

    def formula(v):
        return gain(v.F["pHt"](v), v.S, v.yhat.shape[1])

    table = {**FORMULA_TABLE, "K.glm": formula, "K.softmax": formula}
    inputs = {
        k: {n: np.asarray(w, float) for n, w in a.items()} if isinstance(a, dict) else a * 1.0
        for k, a in case.inputs().items()
    }
    return case.operation.plain(inputs, case.options, table, identity)


@pytest.mark.sampled(0.12)
@pytest.mark.parametrize("gain", SIMPLEX)
@pytest.mark.parametrize(
    "key",
    [
        "loko.step/glm-saturated",
        "loko.step/glm-stacked",
        "loko.run/glm-forgetting",
        "loko.run/glm-glm-before-variational",
        "loko.run/glm-glm-before-dense",
        "loko.run/softmax",
    ],
)
def test_a_gain_of_another_form_is_right_returned_or_not(key, gain):
    (case,) = select(f"{key}/float64")
    out = with_gain(case, SIMPLEX[gain])
    for names in (list(out), ["theta"]):
        check = judge(case, Answer(outputs={k: np.asarray(out[k]) for k in names}))
        assert check.status == "passed", check.divergences


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("gain", ["singular values", "contrasts"])
def test_a_jitter_in_such_a_gain_is_wrong(gain):
    (case,) = select("loko.step/glm-stacked/float64")
    jitter = lambda PH, S, C: SIMPLEX[gain](PH, S + 1e-9 * np.eye(len(S)), C)  # noqa: E731
    out = with_gain(case, jitter)
    for names in (list(out), ["theta"]):
        check = judge(case, Answer(outputs={k: np.asarray(out[k]) for k in names}))
        assert check.status == "failed"
        assert check.divergence.quantity == ("K" if len(names) > 1 else "theta")
