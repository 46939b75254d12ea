"""LTE step by step: what heads, merges and resets do to one small network on real data.

Shapes: N heads; A (N, r, i); B (N, o, r); W (o, i); x (batch, i).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from loko_ref import lte
from loko_ref.checks.values import check_whole
from loko_ref.errors import InputError
from loko_ref.experiments.data import registry
from loko_ref.experiments.lte import diagnostics
from loko_ref.experiments.lte.train import Data, evaluate, schedule
from loko_ref.network.spec import mlp_spec
from loko_ref.optimizers import AdamW

__all__ = ["HEADS", "KINDS", "Moment", "SiteView", "explain_lte"]

HEADS, RANK, EVERY, WIDTH, BATCH = 4, 2, 6, 32, 32
"""Heads, their rank, steps between merges, width of the hidden layer, samples of a step."""

KINDS = {
    "step": (
        "y = W x + scale (B_h A_h - B'_h A'_h) x",
        "Every head takes a step of its own, on its own part of the batch. It sees W, as last "
        "merged, and what it has learned since: A', B' are its factors then (0 after a reset).",
        ("LTE-1", "LTE-3", "LTE-8", "OPT-3"),
    ),
    "merge": (
        "W = W_reset + (scale / N) sum_h B_h A_h",
        "The heads' factors are gathered, and their mean is added to the weight: its rank is as "
        "many as N r. Nothing that a head computes changes for its own share.",
        ("LTE-5", "LTE-9"),
    ),
    "reset": (
        "B_h = 0, A_h drawn again; W_reset = W",
        "The branches begin anew beside a weight that has learned: the next merge adds other "
        "directions, and the rank of the whole update grows beyond N r.",
        ("LTE-6", "LORA-1"),
    ),
}
"""Kind of event -> equation, meaning and derivations."""

Numbers = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteView:
    """One linear with LoRA after an event.

    Attributes
    ----------
    A, B : array (N, r, i), (N, o, r)
        The heads' factors.
    update : array (o, i)
        W - W_0: what all merges so far have added.
    singular : array (min(o, i),)
        Its singular values, descending.
    rank : int
        How many of them are above rounding.
    pending : array (N,)
        Of each head the norm of what it has learned since the last merge.
    overlap : array (N, N)
        Of each two heads the mean squared cosine of the angles between the row spaces of their A:
        1 the same space, 0 orthogonal ones.
    """

    A: Numbers
    B: Numbers
    update: Numbers
    singular: Numbers
    rank: int
    pending: Numbers
    overlap: Numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """One event, explained.

    Attributes
    ----------
    kind : str
        A key of ``KINDS``.
    step, merges : int
        Done so far.
    title : str
        A sentence.
    losses : array (N,)
        The heads' own, before the last step.
    loss, accuracy : float, float or None
        Of the merged network on held-out samples; a regression has no accuracy.
    sites : mapping of str to SiteView
        By the layer's name.
    """

    kind: str
    step: int
    merges: int
    title: str
    losses: Numbers
    loss: float
    accuracy: float | None
    sites: Mapping[str, SiteView]


def _view(config: lte.LteConfig, state: lte.LteState, W_0: Numbers, name: str) -> SiteView:
    site = config.layout.sites[name]
    now = config.layout.site(state.theta, name)
    A, B, W = now["A"], now["B"], state.weights[f"{name}.W"]
    delta = site.scale * (B @ A)
    if state.merged is not None:
        old = config.layout.site(state.merged, name)
        delta = delta - site.scale * (old["B"] @ old["A"])
    Q, _ = np.linalg.qr(A.transpose(0, 2, 1))  # (N, i, r)
    cosines = np.einsum("air,bis->abrs", Q, Q)
    return SiteView(
        A=A,
        B=B,
        update=W - W_0,
        singular=diagnostics.update_spectrum(W, W_0),
        rank=diagnostics.numerical_rank(W, W_0),
        pending=np.linalg.norm(delta, axis=(1, 2)),
        overlap=(cosines**2).sum(axis=(2, 3)) / Q.shape[2],
    )


def _title(kind: str, state: lte.LteState, losses: Numbers) -> str:
    if kind == "step":
        return f"every head takes step {state.step}; mean loss {losses.mean():.3g}"
    if kind == "merge":
        return f"merge {state.merges}, after step {state.step}: the heads' mean goes into W"
    return f"reset after merge {state.merges}: B = 0, A drawn again"


def explain_lte(data: str = "digits", *, steps: int = 24, seed: int = 0) -> Iterator[Moment]:
    """Train a small network by LTE and explain every step, merge and reset.

    Parameters
    ----------
    data : str
        A bundled set of classes.
    steps : int
        Number of steps; there is a merge after every sixth.
    seed : int
        Seed of data, weights and factors.

    Yields
    ------
    Moment

    Raises
    ------
    InputError
        If the data set is unknown, or there are no steps.
    MissingExtraError
        If scikit-learn is not installed.
    """
    check_whole("steps", steps)
    source = registry.load(data, seed=seed)
    if source.classes is None or source.vocabulary is not None:
        required = "a set of classes, no text: digits, breast_cancer, wine or iris"
        raise InputError("data", data, required, "a regression, or a text")
    side = min(RANK, source.classes, source.base.x.shape[1])
    branch = {"r": side, "alpha": 2.0 * side}
    spec = mlp_spec([source.base.x.shape[1], WIDTH, source.classes], "relu", branch)
    config = lte.LteConfig(
        spec=spec,
        heads=HEADS,
        merge_every=EVERY,
        reset="AB",
        optimizer=AdamW(lr=0.02),
        seed=seed,
    )
    parts = Data(x=source.base.x, y=source.base.y, x_test=source.test.x, y_test=source.test.y)
    state = lte.init(config, batch=BATCH // HEADS)
    start, losses = dict(state.weights), np.zeros(HEADS)
    batches = islice(schedule(seed, parts, BATCH, 0, steps), steps)
    for event in lte.iterate(config, state, batches):
        state = event.state
        if event.record is not None:
            losses = np.asarray(event.record.loss)
        loss, accuracy = evaluate(config, state, parts.x_test, parts.y_test)
        yield Moment(
            kind=event.kind,
            step=state.step,
            merges=state.merges,
            title=_title(event.kind, state, losses),
            losses=losses,
            loss=loss,
            accuracy=accuracy,
            sites={
                name: _view(config, state, start[f"{name}.W"], name)
                for name, site in config.layout.sites.items()
                if site.lora
            },
        )
