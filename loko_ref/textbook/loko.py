"""LoKO's dataflow, written once: every quantity of a step for each valid choice of options.

The plain route evaluates it, the catalogue's outputs take their labels and origins from it, the
check of a recording and the explanation of a step follow it.  [LOKO-1]

Shapes: theta (n,); p (n,), with a dense covariance P (n, n); z (batch, C); Z, H (m, n);
yhat, e, r (m,); R, HpH, S (m, m); K (n, m); m = batch * C.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from loko_ref.kalman.lowrank import PRECISIONS
from loko_ref.kalman.noise import combinations
from loko_ref.textbook.network import BACK, FORWARD, network
from loko_ref.textbook.quantities import Quantity, in_order, origins, quantity

Options = Mapping[str, Any]

_CHOSEN = ("observation", "noise", "timing", "covariance", "diagonal", "center", "train", "solve")
"""Options that change the dataflow."""

_FLOWS: dict[tuple[Any, ...], tuple[Quantity, ...]] = {}
"""Options and network -> dataflow, once computed."""

SHAPES = {
    "theta": ("n",),
    "p": ("n",),
    "P": ("n", "n"),
    "R": ("m", "m"),
    "y": ("batch", "C"),
    "p_pred": ("n",),
    "P_pred": ("n", "n"),
    "z": ("batch", "C"),
    "Z": ("m", "n"),
    "yhat": ("m",),
    "e": ("m",),
    "H": ("m", "n"),
    "R_used": ("m", "m"),
    "S": ("m", "m"),
    "K": ("n", "m"),
    "r": ("m",),
    "v": ("m",),
}
"""Name of an input or output -> its axes; m = batch * C."""


def _prior(o: Options) -> tuple[Quantity, ...]:
    """List p_pred, of a precision after what it is computed from."""
    if o["covariance"] in PRECISIONS:
        return _precision_prior(o.get("lam", 0) == 1 and o.get("q", 1) == 0)
    equation = "P / lam + q I" if o["covariance"] == "dense" else "p / lam + q"
    return (quantity("p_pred", "p", "p_pred", equation, "KAL-1"),)


def _run(o: Options) -> tuple[Quantity, ...]:
    """List z and Z: layer by layer where the network is among the options."""
    if "spec" in o:
        return network(o["spec"], packed=True, train=o.get("train", "factors"))
    return (
        quantity("z", "x weights theta", "", "f(x; theta)", FORWARD, exact=True, network=True),
        quantity("Z", "x weights theta", "", "dz / dtheta", BACK, network=True),
    )


def observation(o: Options) -> tuple[Quantity, ...]:
    """List yhat, e and H.  [OBS-1, OBS-2, OBS-3].

    Parameters
    ----------
    o : mapping
        ``observation`` and, for ``logits``, ``center``.
    """
    kind = o["observation"]
    label = {"gaussian": "OBS-1", "softmax": "OBS-2", "logits": "OBS-3", "glm": "OBS-4"}[kind]
    seen = label if kind in ("gaussian", "softmax") else f"OBS-2 {label}"
    if kind in ("softmax", "glm"):
        parents, equation = "yhat Z", "J Z,  J = diag(yhat) - yhat yhat'"
    elif o.get("center"):
        parents, equation = "yhat Z", "(I - 1 1'/C) Z"  # of yhat its shape: (batch, C)
    else:
        parents, equation = "Z", "Z"
    return (
        quantity("yhat", "z", "yhat", "z" if kind == "gaussian" else "softmax(z)", seen),
        quantity("e", "y yhat", "e", "y - yhat", label),
        quantity("H", parents, f"H.{kind}", equation, label),
    )


_ESTIMATOR = {
    "fixed": ("R", "R", "NOISE-1"),
    "ema_innovation": ("R r", "beta R + (1 - beta) e e'", "NOISE-2"),
    "ema_innovation_hph": ("R r HpH", "beta R + (1 - beta)(e e' + H p H')", "NOISE-3"),
    "ema_residual_hph": (
        "R r HpH",
        "beta R + (1 - beta)(r r' + H p+ H'),  r = y - h(theta+)",
        "NOISE-4",
    ),
}
"""Estimator of R -> parents, equation, label."""


def _refresh(name: str, o: Options) -> tuple[Quantity, ...]:
    """List what the estimator reads, and its result under a name."""
    parents, equation, label = _ESTIMATOR[o["noise"]]
    if o["noise"] == "ema_residual_hph" and name == "R_post":
        reads = (
            quantity("r", "x weights y theta_post", "residual", "y - h(theta+)", label,
               exact=True, hidden=True, network="spec" not in o),
            quantity("HpH", "H p_post", "HpH.residual", "H p+ H'", label, hidden=True),
        )  # fmt: skip
    else:
        reads = (
            quantity("r", "e", "innovation_seen", "e", "NOISE-2", exact=True, hidden=True),
            quantity("HpH", "H p_pred", "HpH", "H p H'", "NOISE-3", hidden=True),
        )
    return (*reads, quantity(name, parents, f"R.{o['noise']}", equation, f"{label} NOISE-5"))


def time_update(o: Options) -> tuple[Quantity, ...]:
    """List p_pred, of either ``covariance``.  [KAL-1]."""
    return _prior(o)


def noise(o: Options) -> tuple[Quantity, ...]:
    """List R_post, refreshed from a given e and HpH.  [NOISE-1, NOISE-2, NOISE-3, NOISE-4].

    Parameters
    ----------
    o : mapping
        ``noise``.
    """
    _, _, label = _ESTIMATOR[o["noise"]]
    parents, equation = {
        "fixed": ("R", "R"),
        "ema_innovation": ("R e", "beta R + (1 - beta) e e'"),
    }.get(o["noise"], ("R e HpH", "beta R + (1 - beta)(e e' + HpH)"))
    return (
        quantity("r", "e", "innovation_given", "e", label, exact=True, hidden=True),
        quantity("R_post", parents, f"R.{o['noise']}", equation, label),
    )


def noise_used(o: Options) -> tuple[Quantity, ...]:
    """List R_used, the R that enters S, after what it is refreshed from.  [NOISE-5, OBS-4]."""
    if o["observation"] == "glm":
        return (quantity("R_used", "yhat", "R.glm", "J,  the covariance of y given yhat", "OBS-4"),)
    if o["timing"] == "before":
        return _refresh("R_used", o)
    return (quantity("R_used", "R", "R.standing", "R", "NOISE-5", exact=True),)


def _noise_kept(o: Options) -> tuple[Quantity, ...]:
    if o["observation"] == "glm":
        return ()
    if o["timing"] == "before":
        return (quantity("R_post", "R_used", "R.kept", "R_used", "NOISE-5", exact=True),)
    return _refresh("R_post", o)


def update(o: Options) -> tuple[Quantity, ...]:
    """List S, K and the posteriors theta_post and p_post.  [KAL-2, DIAG-1, DIAG-2, OBS-9].

    Parameters
    ----------
    o : mapping
        ``observation``, ``covariance`` and, of a diagonal one, ``diagonal``; ``solve``.
    """
    kind, precise = o["observation"], o["covariance"] in PRECISIONS
    dense = precise or o["covariance"] == "dense"
    P = "P" if dense else "diag(p)"
    gain = {
        "softmax": quantity("K", "p_pred H S", "K.softmax",
                      f"{P} H' Q' (Q S Q')^-1 Q,  Q the contrasts: Q Q' = I, Q 1 = 0",
                      "KAL-2 OBS-5"),
        "glm": quantity("K", "p_pred Z R_used", "K.glm",
                  f"{P} Z' (I + J G)^-1,  G = Z {P} Z':  J is never inverted",
                  "KAL-2 OBS-6", returned=("K.softmax", "p_pred", "H", "S")),
    }.get(kind) or quantity("K", "p_pred H S", "K", f"{P} H' S^-1", "KAL-2")  # fmt: skip
    if precise:
        posterior = _precision_kept(o)
    elif dense:
        posterior = (quantity("p_post", "p_pred K H", "p.dense", "P - K H P", "KAL-2 LOKO-4"),)
    elif o["diagonal"] == "decoupled":
        posterior = (quantity("p_post", "p_pred K H", "p.decoupled", "p o (1 - diag(K H))",
                       "DIAG-1 DIAG-4"),)  # fmt: skip
    else:
        reads, inside = ("Z", "Z' J Z") if kind == "glm" else ("H", "H' R^-1 H")
        posterior = (quantity("p_post", f"p_pred R_used {reads}", "p.variational",
                       f"1 / (1 / p + diag({inside}))", "DIAG-2 DIAG-4"),)  # fmt: skip
    mean: tuple[Quantity, ...] = (
        quantity("theta_post", "theta K e", "theta_post", "theta + K e", "KAL-2 LOKO-1"),
    )
    if o.get("solve") == "implicit":
        mean = (
            quantity("v", "y z Z p_pred", "v", f"y - softmax(z + G v),  G = Z {P} Z'", "OBS-9"),
            quantity("theta_post", "theta p_pred Z v", "theta_post.implicit", f"theta + {P} Z' v",
                     "OBS-9 LOKO-1"),
        )  # fmt: skip
    return (
        quantity("S", "H p_pred R_used", "S", f"H {P} H' + R", "KAL-2"),
        gain,
        *mean,
        *posterior,
    )


def precision_update(o: Options) -> tuple[Quantity, ...]:
    """List an update of a precision ``U + W W'``, U a diagonal or blocks.  [KAL-9, KAL-10].

    Parameters
    ----------
    o : mapping
        ``lam``, ``q``, and, of blocks, ``blocks``.
    """
    return _precision_update(o["lam"] == 1 and o["q"] == 0, "blocks" in o)


@cache
def _precision_prior(still: bool) -> tuple[Quantity, ...]:
    """List U_pred, W_pred and the covariance that they are the precision of.  [KAL-9]."""
    if still:
        prior: tuple[Quantity, ...] = tuple(
            quantity(f"{name}_pred", name, "", name, "KAL-9", rule=rule, exact=True, hidden=True)
            for name, rule in (("U", lambda v: v.U), ("W", lambda v: v.W))
        )
    else:
        prior = (
            quantity("U_pred", "U", "U_pred", "D U,  D = (I + q U)^-1,  U <- lam U", "KAL-9",
                     hidden=True),
            quantity("W_pred", "U W", "W_pred",
                     "D W C'^-1,  C C' = I + q W' D W,  W <- sqrt(lam) W", "KAL-9", hidden=True),
        )  # fmt: skip
    P = quantity("p_pred", "U_pred W_pred", "P.precision", "(U + W W')^-1", "KAL-9", hidden=True)
    return (*prior, P)


def _precision_kept(o: Options) -> tuple[Quantity, ...]:
    """List U and W W' after a measurement, and what leads to them.  [KAL-9, KAL-10].

    Parameters
    ----------
    o : mapping
        ``covariance``, and of a step ``observation`` and ``noise``.
    """
    kind, blocks = o.get("observation"), o["covariance"] == "block"
    if kind == "glm":
        white = quantity("Hw", "Z R_used", "Hw", "J^1/2 Z", "KAL-9", hidden=True)
    else:
        side = "(Q R Q')^-1/2 Q H,  Q the contrasts" if kind == "softmax" else "R^-1/2 H"
        white = quantity("Hw", "H R_used", "Hw", side, "KAL-9", hidden=True)
    on = "w w' on the blocks" if blocks else "w o w"
    after = (
        quantity("p_post", "U_post turned", "P.posterior", "(U + W W')^-1", "KAL-9", hidden=True),
    )
    return (
        white,
        quantity("wide", "W_pred Hw", "wide", "W~ = [W, Hw']", "KAL-9", hidden=True),
        quantity("gram", "wide", "gram", "W~' W~", "KAL-9", hidden=True),
        quantity("turned", "wide gram", "turned", "W~ V,  W~' W~ = V diag V'", "KAL-9",
                 hidden=True),
        quantity("U_post", "U_pred turned", "U.blocks" if blocks else "U.diagonal",
                 f"U + sum {on} over the columns w of W~ V but the L longest",
                 f"KAL-9 {'KAL-10' * blocks}"),
        quantity("WW_post", "turned", "WW", "sum w w' over the L longest columns w of W~ V",
                 "KAL-9"),
        *(after if o.get("noise") == "ema_residual_hph" else ()),
    )  # fmt: skip


@cache
def _precision_update(still: bool, blocks: bool) -> tuple[Quantity, ...]:
    S, K, theta, _ = update({"observation": "gaussian", "covariance": "dense"})
    kept = _precision_kept({"covariance": "block" if blocks else "lowrank"})
    return (*_precision_prior(still), S, K, theta, *kept)


def dataflow(o: Options) -> tuple[Quantity, ...]:
    """List every quantity of a step, each after its parents.  [LOKO-1].

    Parameters
    ----------
    o : mapping
        ``observation``, ``noise``, ``timing``, ``covariance``, ``diagonal``, ``center``, ``solve``
        (``linear`` where it is left out): a valid combination; of a precision ``lam`` and ``q``
        too. With ``spec``, the network's layers too.

    Examples
    --------
    >>> chosen = {"observation": "glm", "noise": "glm", "timing": "before"}
    >>> chosen |= {"covariance": "diagonal", "diagonal": "decoupled"}
    >>> " ".join(q.name for q in dataflow(chosen))
    'p_pred z Z yhat e H R_used S K theta_post p_post'
    """
    still = o.get("lam", 0) == 1 and o.get("q", 1) == 0 and o["covariance"] in PRECISIONS
    key = (
        *(o.get(name) for name in _CHOSEN),
        still,
        json.dumps(o["spec"]) if "spec" in o else None,
    )
    if key not in _FLOWS:
        if len(_FLOWS) >= 1024:
            _FLOWS.clear()
        prior, used = (*_prior(o), *_run(o)), (*observation(o), *noise_used(o))
        _FLOWS[key] = (*prior, *used, *update(o), *_noise_kept(o))
    return _FLOWS[key]


def output_name(name: str, o: Options) -> str:
    """Name a quantity as the catalogue does: theta_post is theta, and p is P where dense.

    Examples
    --------
    >>> output_name("p_post", {"covariance": "dense"})
    'P'
    """
    name = name.removesuffix("_post")
    dense = o.get("covariance") == "dense"
    return {"p": "P", "p_pred": "P_pred"}.get(name, name) if dense else name


@cache
def choices() -> tuple[dict[str, Any], ...]:
    """List every valid combination of options that changes the dataflow.  [NOISE-7, LOKO-4]."""
    linear = tuple(
        {
            "observation": kind,
            "noise": noise,
            "timing": timing,
            "covariance": covariance,
            "diagonal": diagonal,
            "center": center,
            "solve": "linear",
        }
        for kind, noise, timing in combinations()
        for covariance, diagonal in (
            ("diagonal", "decoupled"),
            ("diagonal", "variational"),
            ("dense", "decoupled"),
        )
        for center in ((False, True) if kind == "logits" else (False,))
    )
    return (*linear, *({**o, "solve": "implicit"} for o in linear if o["observation"] == "glm"))


def summary(name: str) -> tuple[str, str]:
    """Join labels and origins of an output over all choices, each separated by blanks."""
    labels: dict[str, None] = {}
    found: dict[str, None] = {}
    precise = ({**o, "covariance": P} for o in choices() if o["diagonal"] == "variational"
               for P in PRECISIONS)  # fmt: skip
    for o in (*choices(), *precise):
        flow = dataflow(o)
        for q in flow:
            if output_name(q.name, o) == name and not q.hidden:
                labels |= dict.fromkeys(q.labels)
                found |= dict.fromkeys(output_name(k, o) for k in origins(q.name, flow))
    return " ".join(in_order(labels)), " ".join(found)


def delta() -> tuple[Quantity, ...]:
    """List what LoRA adds.  [LORA-2]."""
    return (quantity("delta", "A B", "delta", "(alpha / r) B A", "LORA-2"),)


def merge() -> tuple[Quantity, ...]:
    """List the merged weight.  [LORA-3]."""
    return (quantity("W_post", "W A B", "W_post", "W + (alpha / r) B A", "LORA-3"),)
