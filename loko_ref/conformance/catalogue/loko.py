"""The catalogue's entries of a network, ``model.*``, and of LoKO on it, ``loko.*``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from loko_ref.conformance.catalogue.entry import Operation, Output, gives, option, takes
from loko_ref.conformance.catalogue.network_text import SPEC
from loko_ref.conformance.oracle import loko as oracle
from loko_ref.kalman.diagonal import DIAGONALS
from loko_ref.kalman.implicit import SOLVES
from loko_ref.kalman.noise import ESTIMATORS, TIMINGS
from loko_ref.kalman.observation import OBSERVATIONS
from loko_ref.loko.config import COVARIANCES
from loko_ref.network.spec import TRAINED
from loko_ref.textbook import operations as plain
from loko_ref.textbook.loko import dataflow, output_name, summary
from loko_ref.textbook.network import BACK, FORWARD, ways, within
from loko_ref.textbook.quantities import in_order

DIAGONAL = option(
    "diagonal",
    "decoupled",
    "decoupled: p+ = p (1 - diag(K H)), LoKO's; variational: 1/p+ = 1/p + diag(H' R^-1 H)",
    DIAGONALS,
)
"""How a diagonal covariance is updated."""

SOLVE = option(
    "solve",
    "linear",
    "for glm, how theta is found: linear: theta + K e; implicit: theta + P_pred Z' v, v solving "
    "v = y - softmax(z + Z P_pred Z' v). S, K and the covariance are the same in both",
    SOLVES,
    since=3,
)
"""How the mean is found."""

_SPEC = option("spec", None, SPEC)
_INPUTS = "inputs; tokens (batch, t, i), images or token ids where the spec begins with such"
_X = takes("x", "(batch, i)", _INPUTS)
_WEIGHTS = takes(
    "weights",
    "mapping",
    'a mapping of name to array: "0.W" (o, i), "0.b" (o,), "0.A" (r, i), "0.B" (o, r), and with a '
    'LoRA bias "0.bA" (r,), "0.bB" (o,), for the linear named "0", and so on; other kinds\' as '
    "'layers of a spec' states",
)
_FROZEN = takes(
    "weights",
    "mapping",
    'a mapping of name to the frozen arrays alone: "0.W" (o, i), "0.b" (o,), and so on; the LoRA '
    "factors are in theta: linear by linear in the spec's order, A then B (then bA, bB), each "
    "row-major; an attention's linears are its q, k, v, o. Norms and tables are frozen. With "
    'train="weights" theta holds every other array, and these are LoRA\'s factors alone: a mapping '
    "without entries where the spec has no LoRA",
)
_TRAIN = option(
    "train",
    "factors",
    "what Z, and theta, goes by. factors: LoRA's; weights: every array of the network but these "
    "(an extended Kalman filter without LoRA), layer by layer in the spec's order, of a linear W, "
    "b, of a norm g, b, of tables token, position, type, each row-major",
    TRAINED,
    since=2,
)


def _network(feeds: str) -> tuple[Output, Output]:
    return (
        gives("z", "(batch, C)", "the outputs, layer by layer", FORWARD, feeds),
        gives(
            "Z",
            "(m, n)",
            "dz/dtheta, row b*C + j for output j of sample b; columns in packing order: linear by "
            "linear (an attention's q, k, v, o), A then B (then bA, bB), each row-major; with "
            "train=weights as there",
            BACK,
            feeds,
        ),
    )


_LOKO_OPTIONS = (
    _SPEC,
    option("observation", "glm", "observation model", OBSERVATIONS),
    option(
        "noise",
        "glm",
        "estimator of R, with s = e e': fixed (R stays), ema_innovation (R = beta R + (1-beta) s), "
        "ema_innovation_hph (s + H P_pred H' in place of s), ema_residual_hph (r r' + H P+ H' in "
        "place of s: r = y - yhat(theta+) from a new forward pass at the posterior theta, P+ the "
        "posterior covariance, H still the prior's; timing after only), glm (R = J, no state). "
        "observation glm goes with noise glm and no other, and noise glm with no other",
        ESTIMATORS,
    ),
    option(
        "timing",
        "before",
        "before: R is refreshed first, by e and P_pred, and enters this step's S; after: the old R "
        "enters S and is refreshed then, by the same e and P_pred (ema_residual_hph: by r and P+). "
        "fixed and glm refresh nothing, so it changes nothing there",
        TIMINGS,
    ),
    option("beta", 0.95, "weight of the past in R's average"),
    option(
        "covariance",
        "diagonal",
        "diagonal: p (n,) is the state; dense: P (n, n) is, with the textbook update; lowrank and "
        "block: U and W are, a precision P_pred^-1 = U + W W' after the time update of "
        "kalman.lowrank_update and kalman.block_update",
        COVARIANCES,
    ),
    replace(
        DIAGONAL,
        text=DIAGONAL.text + ", R = R_used (for glm: 1/p + diag(Z' J Z)); p here is p_pred",
    ),
    option("lam", 1.0, "forgetting: p_pred = p / lam + q"),
    option("q", 0.0, "process noise"),
    option("center", False, "for logits: centre H over each sample's classes"),
    _TRAIN,
    SOLVE,
    option(
        "blocks",
        [],
        "for covariance block, the block of each parameter, n numbers, as in kalman.block_update: "
        "one per input of A and output of B (then bA's, and each entry of bB), or one per array",
        since=3,
    ),
)


def _out(name: str, shape: str, formula: str) -> Output:
    """Write an output of a step; labels and origins are those of the dataflow."""
    return gives(name, shape, formula, *summary(name))


_LOKO_OUTPUTS = (
    _out("p_pred", "(n,)", "p / lam + q (covariance diagonal)"),
    _out("P_pred", "(n, n)", "P / lam + q I (covariance dense)"),
    *_network("x weights theta"),
    _out("yhat", "(m,)", "as in observation.NAME, by the option"),
    _out("e", "(m,)", "y - yhat, y stacked as yhat is"),
    _out("H", "(m, n)", "as in observation.NAME, by the option"),
    _out("R_used", "(m, m)", "the R that enters S (glm: J)"),
    _out("S", "(m, m)", "H P_pred H' + R_used, P_pred or diag(p_pred)"),
    _out(
        "K",
        "(n, m)",
        "P_pred H' S^-1; for glm, where S has no inverse (S 1 = 0 in each sample), "
        "P_pred H' S^+ = P_pred Z' (I + J Z P_pred Z')^-1, rows centred. softmax and glm are "
        "compared after each row is centred over each sample's classes; K e and K H are not "
        "changed by that",
    ),
    _out(
        "v",
        "(m,)",
        "the innovation at the posterior mean (solve implicit): y - softmax(z + G v), "
        "G = Z P_pred Z'; sums to 0 over each sample's classes",
    ),
    _out("theta", "(n,)", "theta + K e (solve implicit: theta + P_pred Z' v)"),
    _out(
        "U",
        "(n,) or (n, n)",
        "of kalman.lowrank_update, or of kalman.block_update, with the new columns (R^-1/2 H)'; "
        "glm: (J^1/2 Z)', a factor of Z' J Z; softmax: of H' R^-1 H over each sample's contrasts",
    ),
    _out("WW", "(n, n)", "W W' of the new W, as there; W (n, L) may be returned in its place"),
    _out("p", "(n,)", "by the option diagonal (covariance diagonal)"),
    _out("P", "(n, n)", "P_pred - K H P_pred (covariance dense)"),
    _out(
        "R",
        "(m, m)",
        "noise estimate for the next step: fixed: R; before: R_used; after: refreshed; not for glm",
    ),
)


def network_labels(quantity: str, o: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of z by the layers that there are, those of Z as the table has them."""
    if quantity != "z":
        return tuple(BACK.split())
    found = {label for q in ways(o["spec"])[0] if q.name != "z" for label in q.labels}
    return tuple(in_order(found - {"LORA-4"}))  # which packs theta


def _labels(quantity: str, o: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of an output under the options in force."""
    if quantity in ("z", "Z"):
        return network_labels(quantity, o)
    return next((q.labels for q in dataflow(o) if output_name(q.name, o) == quantity), ())


def _inside(lead: str, o: Mapping[str, Any]) -> tuple[Output, ...]:
    """List a network's layers as outputs: what each gives, an attention's scores and weights."""
    return tuple(
        gives(
            q.name,
            f"({lead}{q.shape.removeprefix('(') or 'batch, ...)'}",
            q.equation,
            " ".join(q.labels),
            "x weights",
        )
        for q in ways(o["spec"])[0]
        if within(q.name)
    )


def _loko(name: str, text: str, lead: str, run: bool) -> Operation:
    def grow(shape: str) -> str:
        return f"({lead}{shape[1:]}"

    return Operation(
        name=name,
        text=text,
        inputs=(
            takes("x", grow("(batch, i)"), _INPUTS),
            takes("y", grow("(batch, C)"), "one-hot rows or probabilities; real rows for gaussian"),
            takes("theta", "(n,)", "prior mean, packed as under weights"),
            takes("p", "(n,)", "prior variances", "covariance='diagonal'"),
            takes("P", "(n, n)", "prior covariance", "covariance='dense'"),
            takes(
                "U",
                "(n,) or (n, n)",
                "the prior precision's diagonal part, > 0; with blocks a matrix, 0 outside of them",
                "covariance='lowrank' or 'block'",
                since=3,
            ),
            takes(
                "W",
                "(n, L)",
                "the prior precision's factor of low rank, L >= 0",
                "covariance='lowrank', or a part of low rank beside blocks",
                since=3,
            ),
            takes(
                "R",
                "(m, m)",
                "noise estimate so far, symmetric positive definite; m = batch*C; for softmax, and "
                "logits with center, it takes what is constant over each sample's classes to such",
                "any noise but 'glm'",
            ),
            _FROZEN,
        ),
        options=_LOKO_OPTIONS,
        outputs=tuple(replace(o, shape=grow(o.shape)) for o in _LOKO_OUTPUTS),
        oracle=oracle.loko_run if run else oracle.loko_step,
        plain=plain.loko_run if run else plain.loko_step,
        stepwise=run,
        factors={"W": "WW"},
        narrow=_labels,
        inside=partial(_inside, lead),
    )


MODEL = (
    Operation(
        name="model.forward",
        text="the network's outputs",
        inputs=(_X, _WEIGHTS),
        options=(_SPEC,),
        outputs=_network("x weights")[:1],
        oracle=oracle.model_forward,
        plain=plain.model_forward,
        narrow=network_labels,
        inside=partial(_inside, ""),
    ),
    Operation(
        name="model.jacobian",
        text="outputs and their Jacobian with respect to every LoRA factor, or every weight",
        inputs=(_X, _WEIGHTS),
        options=(_SPEC, _TRAIN),
        outputs=_network("x weights"),
        oracle=oracle.model_jacobian,
        plain=plain.model_jacobian,
        narrow=network_labels,
        inside=partial(_inside, ""),
    ),
    _loko("loko.step", "one step of LoKO on a batch stacked into one observation", "", False),
    _loko("loko.run", "LoKO on a stream: a step for each leading entry of x, y", "steps, ", True),
)
"""Entries in order."""
