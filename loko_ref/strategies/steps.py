"""Strategies for LoKO's steps: configurations, batches and states for a network.

Shapes: theta, p (n,); P (n, n); R (m, m), m = batch * C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from loko_ref import kalman
from loko_ref.errors import InputError
from loko_ref.kalman.implicit import SOLVES
from loko_ref.loko import Batch, LokoConfig, LokoState
from loko_ref.network.layers import embedding
from loko_ref.network.model import Model, pack, sites
from loko_ref.network.spec import reads_tokens
from loko_ref.strategies.matrices import arrays, frozen, spd_matrices, variances
from loko_ref.strategies.networks import models

DENSE_FORMS = ("joseph", "textbook", "information")
"""Forms that accept any R; ``sequential`` requires a diagonal one."""

SEQUENTIAL = (("gaussian", "fixed"), ("logits", "fixed"))
"""Observations and estimators whose R stays diagonal."""


@st.composite
def _ids(draw: st.DrawFn, layer: dict[str, Any], size: int) -> Any:
    """Draw token ids (size, t), or (size, channels, t), for an embedding."""
    start, pad = layer.get("start"), layer.get("pad")
    t = draw(st.integers(1, layer["positions"] - (0 if start is None else start + 1)))
    tops = {"ids": layer["vocab"], "types": layer.get("types", 1), "mask": 2}
    channels = {}
    for name in embedding.channels(layer):
        entries = st.lists(st.integers(0, tops[name] - 1), min_size=size * t, max_size=size * t)
        channels[name] = np.array(draw(entries)).reshape(size, t)
    if "mask" in channels:
        channels["mask"][:, 0] = 1
    elif pad is not None:
        first = channels["ids"][:, 0]
        first[first == pad] = (pad + 1) % layer["vocab"]
    stacked = [channels[name] for name in embedding.channels(layer)]
    return frozen(stacked[0] if len(stacked) == 1 else np.stack(stacked, axis=1))


@st.composite
def _inputs(draw: st.DrawFn, model: Model, size: int) -> Any:
    """Draw the input of a model's first layer."""
    first = dict(model.spec[0])
    if first["kind"] == "embedding":
        return draw(_ids(first, size))
    shape: tuple[int, ...] = (size, model.inputs)
    if first["kind"] != "patchify" and reads_tokens(model.spec):
        shape = (size, draw(st.integers(1, 3)), model.inputs)
    return draw(arrays(shape, dtype=str(model.dtype), size=2.0))


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

    x holds features (batch, i) or (batch, t, width), flat images, or token ids, as the model
    requires; each text has a token that is not padding.

    Parameters
    ----------
    model : Model
        Determines shapes and dtype.
    observation : str
        The observation model, which determines y.
    size : int, optional
        Number of samples; None draws 1 to `max_size`.
    max_size : int
        Most samples.
    """
    size = draw(st.integers(1, max_size)) if size is None else size
    dtype, C = str(model.dtype), model.outputs
    x = draw(_inputs(model, size))
    if observation == "gaussian":
        return Batch(x=x, y=draw(arrays((size, C), dtype=dtype)))
    labels = draw(st.lists(st.integers(0, C - 1), min_size=size, max_size=size))
    return Batch(x=x, y=frozen(np.array(labels)))


@st.composite
def configs(
    draw: st.DrawFn,
    /,
    model: Model,
    *,
    covariance: str | None = None,
    dense_form: str | None = None,
    **fixed: Any,
) -> LokoConfig:
    """Draw a valid LoKO configuration for a model, from all options of the package.

    Parameters
    ----------
    model : Model
        The network; with a single output the observation is ``gaussian``.
    covariance : {"diagonal", "dense"}, optional
        None draws it.
    dense_form : {"textbook", "joseph", "information"}, optional
        Form of the update if the covariance is dense; None draws it.
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
        and (not fixed.get("center") or c[0] == "logits")
        and (fixed.get("form") != "sequential" or c[:2] in SEQUENTIAL)
        and (fixed.get("solve") != "implicit" or c[0] == "glm")
    ]
    if not valid:
        got = {k: v for k, v in fixed.items() if k in ("observation", "noise", "timing", "center")}
        raise InputError(
            "configs",
            f"{got} for a model with {model.outputs} outputs",
            "compatible options; with one output the observation is 'gaussian'",
            "an observation of classes, or an estimator of another observation",
        )
    observation, noise, timing = draw(st.sampled_from(valid))
    named = {name: draw(st.sampled_from([0.07, 0.5])) for name, _, _ in sites(model)}
    if covariance is None and fixed.get("form", "joseph") != "joseph":
        covariance = "dense"
    if covariance is None and fixed.get("diagonal", "decoupled") != "decoupled":
        covariance = "diagonal"
    dense = (covariance or draw(st.sampled_from(["diagonal", "dense"]))) == "dense"
    choices: dict[str, Any] = {
        "observation": observation,
        "noise": noise,
        "timing": timing,
        "beta": draw(st.sampled_from([0.95, 0.5, 0.0])),
        "r0": draw(st.sampled_from([1.0, 0.1, 10.0])),
        "p0": draw(st.sampled_from([0.07, 1.0, named])),
        "covariance": "dense" if dense else "diagonal",
        "diagonal": "decoupled" if dense else draw(st.sampled_from(kalman.diagonal.DIAGONALS)),
        "form": (dense_form or draw(st.sampled_from(DENSE_FORMS))) if dense else "joseph",
        "lam": draw(st.sampled_from([1.0, 0.99])),
        "q": draw(st.sampled_from([0.0, 1e-3])),
        "center": observation == "logits"
        and fixed.get("form") != "sequential"
        and draw(st.booleans()),
        "solve": draw(st.sampled_from(SOLVES)) if observation == "glm" else "linear",
    }
    return LokoConfig(model=model, **(choices | fixed))


@st.composite
def states(draw: st.DrawFn, config: LokoConfig, *, batch: int = 1, cond: float = 1e3) -> LokoState:
    """Draw a filter's state in the middle of a run.

    R is symmetric positive definite; for ``softmax`` and centred ``logits`` it has the form
    preserved by their averages, r I plus contrasts: each sample's all-ones vector is an
    eigenvector.

    Parameters
    ----------
    config : LokoConfig
        The configuration, with model and dtype.
    batch : int
        Samples per step.
    cond : float
        Bound on the conditioning of p (or P) and R.
    """
    theta = pack(config.model)
    dtype, n, C = str(theta.dtype), theta.shape[0], config.model.outputs
    m = batch * C
    R: Any = None
    if config.observation == "softmax" or config.center:
        # r (I + c c'), c a contrast within each sample: cond(R) = 1 + |c|^2 <= cond. All entries
        # are whole multiples of a power of 2, so that R 1 = r 1 holds exactly, in float32 too
        quarters = st.lists(st.integers(-8, 8), min_size=m, max_size=m)
        c = np.array(draw(quarters)).reshape(batch, C) / 4
        c[:, -1] -= c.sum(axis=1)
        c = c.reshape(-1)
        while c @ c > cond - 1:
            c /= 2
        r = draw(st.sampled_from([1.0, 0.125]))
        R = frozen((r * (np.eye(m) + np.outer(c, c))).astype(dtype))
    elif config.observation != "glm":
        alone = config.form == "sequential"
        R = draw(spd_matrices(m, cond=cond, dtype=dtype, diagonal=alone))
    mean = draw(arrays(n, dtype=dtype, size=2.0))
    step = draw(st.integers(0, 1000))
    if config.covariance == "dense":
        P = draw(spd_matrices(n, cond=cond, scale=(1e-2, 1.0), dtype=dtype))
        return LokoState(theta=mean, P=P, R=R, step=step)
    p = draw(variances(n, cond=cond, scale=(1e-2, 1.0), dtype=dtype))
    return LokoState(theta=mean, p=p, R=R, step=step)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepProblem:
    """One whole step of LoKO.

    Attributes
    ----------
    config : LokoConfig
        The options, and the network.
    state : LokoState
        Before the step.
    batch : Batch
        Inputs and targets.
    """

    config: LokoConfig
    state: LokoState
    batch: Batch

    def arguments(self) -> dict[str, Any]:
        """Return the inputs and options of the catalogue's ``loko.step``, by name.

        y is one-hot, ``weights`` holds the frozen arrays only, token ids have the model's dtype.
        """
        c, s, model = self.config, self.state, self.config.model
        y = self.batch.y
        if c.observation != "gaussian":
            y = np.eye(model.outputs, dtype=model.dtype)[y]
        named = ("observation", "noise", "timing", "beta", "covariance", "diagonal", "solve")
        found = {
            "x": self.batch.x.astype(model.dtype),
            "y": y,
            "theta": s.theta,
            "p": s.p,
            "P": s.P,
            "R": s.R,
            "weights": {k: a for k, a in model.weights.items() if k not in model.trainable},
            "spec": [dict(layer) for layer in model.spec],
            **{name: getattr(c, name) for name in (*named, "lam", "q", "center")},
        }
        return {name: value for name, value in found.items() if value is not None}


@st.composite
def step_problems(
    draw: st.DrawFn,
    /,
    *,
    networks: st.SearchStrategy[Model] | None = None,
    max_size: int = 2,
    cond: float = 1e2,
    **fixed: Any,
) -> StepProblem:
    """Draw a step of LoKO in the middle of a run: network, options, state, batch.

    Parameters
    ----------
    networks : strategy of Model, optional
        Default: ``models(max_width=4, max_depth=2, min_outputs=2)``; ``transformers()`` too.
    max_size : int
        Most samples of the batch.
    cond : float
        Bound on the conditioning of p (or P) and R.
    **fixed
        Fields of :class:`loko_ref.loko.LokoConfig`, taken as given. Unless given, beta is not 0,
        which would make R rank-deficient, and a dense update has the textbook form, as in the
        catalogue.
    """
    if networks is None:
        networks = models(max_width=4, max_depth=2, min_outputs=2)
    usual: dict[str, Any] = {"beta": draw(st.sampled_from([0.95, 0.5]))}
    config = draw(configs(draw(networks), dense_form="textbook", **(usual | fixed)))
    size = draw(st.integers(1, max_size))
    return StepProblem(
        config=config,
        state=draw(states(config, batch=size, cond=cond)),
        batch=draw(batches(config.model, observation=config.observation, size=size)),
    )
