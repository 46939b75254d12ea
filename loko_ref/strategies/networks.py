"""Draws of networks, and of the configurations, batches and states that belong to them.

Shapes: A (r, i); B (o, r); theta, p (n,); P (n, n); R (m, m), m = batch * C.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from loko_ref import kalman
from loko_ref.loko import COVARIANCES, Batch, LokoConfig, LokoState
from loko_ref.model import Model, mlp_spec, pack, param_shapes, sites
from loko_ref.strategies.matrices import Floats, arrays, dtype_or, frozen, spd_matrices, variances

__all__ = ["batches", "configs", "factors", "models", "states"]


@st.composite
def factors(
    draw: st.DrawFn,
    *,
    max_width: int = 6,
    bias: bool | None = None,
    dtype: str | None = None,
) -> dict[str, Floats]:
    """Draw one site's trained factors: A (r, i), B (o, r), perhaps bA (r,), bB (o,).

    B is not held at 0, where training begins.

    Parameters
    ----------
    max_width : int
        Bound on i and o; 1 <= r <= min(i, o).
    bias : bool, optional
        Whether bA and bB are there; None draws it.
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(dtype_or(dtype))
    i, o = draw(st.integers(1, max_width)), draw(st.integers(1, max_width))
    r = draw(st.integers(1, min(i, o)))
    drawn = {"A": draw(arrays((r, i), dtype=dtype)), "B": draw(arrays((o, r), dtype=dtype))}
    if draw(st.booleans()) if bias is None else bias:
        drawn |= {"bA": draw(arrays(r, dtype=dtype)), "bB": draw(arrays(o, dtype=dtype))}
    return drawn


@st.composite
def models(
    draw: st.DrawFn,
    *,
    max_width: int = 5,
    max_depth: int = 3,
    activations: tuple[str, ...] = ("tanh", "relu", "gelu", "softmax", "log_softmax"),
    min_outputs: int = 1,
    train_all: bool = False,
    dtype: str | None = None,
) -> Model:
    """Draw a stack of linear layers with LoRA on each, activations between, weights of order 1.

    Parameters
    ----------
    max_width, max_depth : int
        Bounds on every width and on the number of linear layers.
    activations : tuple of str
        Names to draw from.
    min_outputs : int
        Least width of the output; 2 where classes are observed.
    train_all : bool
        Whether W and b are trainable beside the factors.
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(dtype_or(dtype))
    depth = draw(st.integers(1, max_depth))
    widths = draw(st.lists(st.integers(1, max_width), min_size=depth + 1, max_size=depth + 1))
    widths[-1] = max(widths[-1], min_outputs)
    spec: list[dict[str, Any]] = []
    for layer in mlp_spec(widths):
        if layer["kind"] == "linear":
            r = draw(st.integers(1, min(layer["in"], layer["out"])))
            site = {"r": r, "alpha": draw(st.sampled_from([1.0, 2.0, 0.5, 8.0]))}
            spec.append({**layer, "lora": {**site, "bias": draw(st.booleans())}})
        else:
            spec.append({"kind": draw(st.sampled_from(activations))})
    shapes = param_shapes(spec)
    weights = {name: draw(arrays(s, dtype=dtype, size=2.0)) for name, s in shapes.items()}
    return Model(spec=spec, weights=weights, trainable=tuple(shapes) if train_all else ())


@st.composite
def batches(
    draw: st.DrawFn,
    model: Model,
    *,
    observation: str = "glm",
    size: int | None = None,
    max_size: int = 3,
) -> Batch:
    """Draw a batch for a model: inputs x, and labels (real rows for ``gaussian``).

    Parameters
    ----------
    model : Model
        Gives widths and dtype.
    observation : str
        The observation model for which y is meant.
    size : int, optional
        Samples; None draws 1 to `max_size`.
    max_size : int
        The most samples.
    """
    size = draw(st.integers(1, max_size)) if size is None else size
    dtype, C = str(model.dtype), model.outputs
    x = draw(arrays((size, model.inputs), dtype=dtype, size=2.0))
    if observation == "gaussian":
        return Batch(x=x, y=draw(arrays((size, C), dtype=dtype)))
    labels = draw(st.lists(st.integers(0, C - 1), min_size=size, max_size=size))
    return Batch(x=x, y=frozen(np.array(labels)))


@st.composite
def configs(
    draw: st.DrawFn, /, model: Model, *, covariance: str | None = None, **fixed: Any
) -> LokoConfig:
    """Draw a valid LoKO configuration for a model, from every choice that the package lists.

    Parameters
    ----------
    model : Model
        The network; one with a single output is observed as ``gaussian``.
    covariance : {"diagonal", "dense"}, optional
        None draws it.
    **fixed
        Any further field of :class:`loko_ref.loko.LokoConfig`, taken as given.
    """
    valid = [
        c
        for c in kalman.noise.combinations()
        if (model.outputs > 1 or c[0] == "gaussian")
        and all(
            fixed.get(key) in (None, value)
            for key, value in zip(("observation", "noise", "timing"), c, strict=True)
        )
    ]
    observation, noise, timing = draw(st.sampled_from(valid))
    named = {name: draw(st.sampled_from([0.07, 0.5])) for name, _, _ in sites(model)}
    if covariance is None and fixed.get("form", "joseph") != "joseph":
        covariance = "dense"
    if covariance is None and fixed.get("diagonal", "decoupled") != "decoupled":
        covariance = "diagonal"
    dense = (covariance or draw(st.sampled_from(COVARIANCES))) == "dense"
    choices: dict[str, Any] = {
        "observation": observation,
        "noise": noise,
        "timing": timing,
        "beta": draw(st.sampled_from([0.95, 0.5, 0.0])),
        "r0": draw(st.sampled_from([1.0, 0.1, 10.0])),
        "p0": draw(st.sampled_from([0.07, 1.0, named])),
        "covariance": "dense" if dense else "diagonal",
        "diagonal": "decoupled" if dense else draw(st.sampled_from(kalman.diagonal.DIAGONALS)),
        "form": draw(st.sampled_from(["joseph", "textbook", "information"])) if dense else "joseph",
        "lam": draw(st.sampled_from([1.0, 0.99])),
        "q": draw(st.sampled_from([0.0, 1e-3])),
        "center": observation == "logits" and draw(st.booleans()),
    }
    return LokoConfig(model=model, **(choices | fixed))


@st.composite
def states(draw: st.DrawFn, config: LokoConfig, *, batch: int = 1, cond: float = 1e3) -> LokoState:
    """Draw a filter's state in the middle of a run.

    R is symmetric positive definite; for ``softmax`` and centred ``logits`` it has the form that
    their averages keep, r I plus contrasts: each sample's all-ones vector is an eigenvector.

    Parameters
    ----------
    config : LokoConfig
        The choices; gives model and dtype.
    batch : int
        Samples a step.
    cond : float
        Bound on the conditioning of p (or P) and R.
    """
    theta = pack(config.model)
    dtype, n, C = str(theta.dtype), theta.shape[0], config.model.outputs
    m = batch * C
    R: Any = None
    if config.observation == "softmax" or config.center:
        # r (I + c c'), c a contrast within each sample: cond(R) = 1 + |c|^2 <= cond
        c = np.array(draw(arrays((batch, C), size=2.0)))
        c = (c - c.mean(axis=1, keepdims=True)).reshape(-1)
        size = float(np.linalg.norm(c))
        if size > math.sqrt(cond - 1):
            c *= math.sqrt(cond - 1) / size
        R = frozen((draw(st.sampled_from([1.0, 0.1])) * (np.eye(m) + np.outer(c, c))).astype(dtype))
    elif config.observation != "glm":
        R = draw(spd_matrices(m, cond=cond, dtype=dtype))
    mean = draw(arrays(n, dtype=dtype, size=2.0))
    step = draw(st.integers(0, 1000))
    if config.covariance == "dense":
        P = draw(spd_matrices(n, cond=cond, scale=(1e-2, 1.0), dtype=dtype))
        return LokoState(theta=mean, P=P, R=R, step=step)
    p = draw(variances(n, cond=cond, scale=(1e-2, 1.0), dtype=dtype))
    return LokoState(theta=mean, p=p, R=R, step=step)
