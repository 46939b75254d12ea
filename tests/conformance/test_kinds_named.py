"""Kinds of mistakes that strangers' programs had: each is named, and nothing else is."""

from collections import Counter

import einsum_loko
import numpy as np
import pytest
from einsum_network import Network

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.diagnose.search.again import calling
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation

pytestmark = pytest.mark.verdict


def leading(functions, *patterns, dtype="float64"):
    """Names given first, of the wrong checks, with how many have it."""
    target = Implementation(target="made", functions=functions)
    cases = [case for pattern in patterns for case in select(pattern, dtype)]
    checks = run(target, cases)
    named = name_mistakes(checks, calling(target, None))
    return Counter(fits[0].text if fits else None for fits in named.values())


def adam(kind):
    """Return AdamW as its relatives are, with what they carry."""

    def function(*, theta, gradient, lr, beta1, beta2, eps, weight_decay):
        m, s, top, rows = 0 * theta, 0 * theta, 0 * theta, []
        for t, g in enumerate(gradient, start=1):
            m = beta1 * m + (1 - beta1) * g
            s = beta2 * s + (1 - beta2) * (g - m if kind == "belief" else g) ** 2
            one, two = 1 - beta1**t, 1 - beta2**t
            top = np.maximum(top, s)
            hat = m if kind == "first" else m / one
            if kind == "nadam":
                hat = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / one
            if kind == "divided":
                hat = hat + weight_decay * theta
            root = np.sqrt((top if kind == "amsgrad" else s) / (1 if kind == "second" else two))
            kept = theta if kind == "divided" else theta * (1 - lr * weight_decay)
            theta = kept - lr * hat / (root + eps)
            rows.append({"theta": theta, "exp_avg": m, "exp_avg_sq": s})
        return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

    return function


@pytest.mark.sampled(0.1)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("amsgrad", "AMSGrad in place of AdamW"),
        ("nadam", "NAdam in place of AdamW"),
        ("belief", "AdaBelief in place of AdamW"),
        ("first", "AdamW: exp_avg's bias correction left out"),
        ("second", "AdamW: exp_avg_sq's bias correction left out"),
        ("divided", "AdamW: decay divided by the root"),
    ],
)
def test_a_relative_of_adam_is_named(kind, name):
    assert set(leading({"optimizer.adamw": adam(kind)}, "optimizer.adamw/*")) == {name}


def joseph(forms):
    """Return the dense update, P by Joseph's form as it is written in ``forms``."""

    def function(*, theta, P, H, e, R):
        S = H @ P @ H.T + R
        K = np.linalg.solve(S, H @ P).T
        F = np.eye(len(P)) - K @ H
        return {"S": S, "K": K, "theta": theta + K @ e, "P": forms(F, P, K, R, S)}

    return function


@pytest.mark.sampled(0.1)
@pytest.mark.parametrize(
    ("forms", "what"),
    [
        (lambda F, P, K, R, S: F @ P @ F + K @ R @ K.T, "F in place of F'"),
        (lambda F, P, K, R, S: F @ P @ F.T + K @ S @ K.T, "S in place of R_used"),
        (lambda F, P, K, R, S: F @ P @ F.T + K @ K.T, "K in place of (K R_used)"),
        (lambda F, P, K, R, S: F @ P @ F.T - K @ R @ K.T, "-K"),
    ],
)
def test_a_mistake_in_josephs_form_is_named_in_that_form(forms, what):
    """None is a change of P - K H P."""
    found = leading({"kalman.dense_update": joseph(forms)}, "kalman.dense_update/*")
    assert set(found) == {f"P = F P F' + K R K',  F = I - K H: {what}"}


class Late:
    """A run whose network is that of another step."""

    def __init__(self, pick):
        self.pick = pick

    def __call__(self, *, x, y, theta, spec, weights, p=None, P=None, R=None, **rest):
        rows, seen = [], []
        right = einsum_loko.network
        for xs, ys in zip(x, y, strict=True):
            seen.append({"x": xs, "theta": theta})

            def network(spec, weights, x, seen=seen):
                if len(seen) == 1 or x is not seen[-1]["x"]:
                    seen[-1].setdefault("found", right(spec, weights, x))
                    return seen[-1]["found"]
                return self.pick(right, spec, weights, seen)

            einsum_loko.network = network
            try:
                out = einsum_loko.loko_step(
                    x=xs, y=ys, theta=theta, p=p, P=P, R=R, spec=spec, weights=weights, **rest
                )
            finally:
                einsum_loko.network = right
            rows.append(out)
            theta, p, P, R = (out.get(k) for k in ("theta", "p", "P", "R"))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def at(spec, weights, theta):
    return weights | einsum_loko.split(spec, theta)


def first_theta(right, spec, weights, seen):
    return right(spec, at(spec, weights, seen[0]["theta"]), seen[-1]["x"])


def last_theta_of_Z(right, spec, weights, seen):
    old = right(spec, at(spec, weights, seen[-2]["theta"]), seen[-1]["x"])
    return right(spec, weights, seen[-1]["x"])[0], old[1]


@pytest.mark.sampled(0.05)
@pytest.mark.parametrize(
    ("pick", "name"),
    [
        (first_theta, "the network never gets the new theta"),
        (last_theta_of_Z, "Z at the theta of the step before"),
    ],
)
def test_a_network_of_another_step_is_named(pick, name):
    assert set(leading({"loko.run": Late(pick)}, "loko.run/glm-stacked/*")) == {name}


class OnePass(Network):
    """E[x^2] - E[x]^2 in the norms, times a factor."""

    factor = 1.0

    def layernorm(self, layer, x, T):
        eps = layer.get("eps", 1e-5)
        g, b = self.own(layer, "g", "b") if layer.get("affine", True) else (1.0, 0.0)
        mean = x.mean(axis=-1, keepdims=True)
        variance = self.factor * ((x * x).mean(axis=-1, keepdims=True) - mean * mean)
        return g * (x - mean) / np.sqrt(variance + eps) + b, T


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_variance_in_one_pass_is_imprecise_in_both_dtypes(dtype):
    def forward(network):
        return lambda *, x, weights, spec: {"z": network(spec, weights, x.dtype)(x)[0]}

    class Wrong(OnePass):
        factor = 1.2

    cases = [c for c in select("model.forward/layernorm*", dtype) if "m-constant" not in c.id]
    for network, wanted in ((OnePass, {"passed", "imprecise"}), (Wrong, {"failed"})):
        target = Implementation(target="made", functions={"model.forward": forward(network)})
        assert {check.status for check in run(target, cases)} == wanted
