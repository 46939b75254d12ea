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
from loko_ref.checks.values import check_choice, check_whole
from loko_ref.errors import InputError
from loko_ref.experiments.data import registry
from loko_ref.experiments.defaults import FROM_SCRATCH
from loko_ref.experiments.lte import diagnostics
from loko_ref.experiments.lte.train import Data, evaluate, schedule
from loko_ref.experiments.networks import put_lora
from loko_ref.lte.config import Reset
from loko_ref.network.spec import mlp_spec
from loko_ref.optimizers import AdamW

RANK, WIDTH, BATCH = 2, 32, 32
"""Rank of a head, width of the hidden layer, samples of a step: or as many as all heads share."""

RESETS = {"B": "B = 0", "AB": "B = 0, A drawn again"}
"""What is reset -> in words."""

MOST_HEADS = 64
"""Most heads that are shown one by one."""

KINDS = {
    "step": (
        "y = W x + scale (B_h A_h - B'_h A'_h) x",
        "Every head takes a step of its own, on its own part of the batch. Its weight is W, as "
        "last merged, plus its update since: A', B' are its factors then (0 after a reset).",
        ("LTE-1", "LTE-3", "LTE-8", "OPT-3"),
    ),
    "merge": (
        "W = W_reset + (scale / N) sum_h B_h A_h",
        "The heads' factors are gathered, and their mean is added to the weight: its rank is as "
        "many as N r. Nothing that a head computes changes for its own share.",
        ("LTE-5", "LTE-9"),
    ),
    "reset": (
        "B_h = 0, with AB A_h drawn again; W_reset = W",
        "The branches start again, beside a weight that contains the merged update. Where A is "
        "drawn again, the next merge adds other directions: the whole update's rank exceeds N r.",
        ("LTE-6", "LORA-1"),
    ),
}
"""Kind of event -> equation, meaning and derivations."""

Numbers = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteView:
    """One linear with LoRA after an event."""

    A: Numbers  # (N, r, i): the heads' factors
    B: Numbers  # (N, o, r)
    update: Numbers  # (o, i): W - W_0: what all merges so far have added
    singular: Numbers  # (min(o, i),): its singular values, descending
    rank: int  # how many of them are above rounding
    pending: Numbers  # (N,): of each head the norm of what it has learned since the last merge
    # (N, N): of each two heads the mean squared cosine of the angles between the row spaces of
    # their A: 1 the same space, 0 orthogonal ones
    overlap: Numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """One event, explained."""

    kind: str  # a key of `KINDS`
    # done so far
    step: int
    merges: int
    title: str  # a sentence
    losses: Numbers  # (N,): the heads' own, before the last step
    # of the merged network on held-out samples; a regression has no accuracy
    loss: float
    accuracy: float | None
    sites: Mapping[str, SiteView]  # by the layer's name


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


def _title(kind: str, state: lte.LteState, losses: Numbers, reset: str) -> str:
    if kind == "step":
        return f"every head takes step {state.step}; mean loss {losses.mean():.3g}"
    if kind == "merge":
        return f"merge {state.merges}, after step {state.step}: the heads' mean goes into W"
    return f"reset after merge {state.merges}: {RESETS[reset]}"


@dataclass(frozen=True, kw_only=True)
class HeadsRun:
    """A small run of LTE to walk through."""

    data: str = "digits"  # a bundled set of classes
    steps: int = 24  # number of steps
    seed: int = 0  # seed of data, weights and factors
    heads: int = 4  # number of heads, at most 64, so that each can be shown
    # of every head on both layers; by default 2, or the smallest side of a layer
    rank: int | None = None
    merge_every: int = 6  # steps between merges
    reset: Reset = "AB"  # {"none", "B", "AB"}: what is reset after a merge

    def __post_init__(self) -> None:
        check_whole("heads", self.heads, high=MOST_HEADS)
        for name in ("steps", "merge_every", *(() if self.rank is None else ("rank",))):
            check_whole(name, getattr(self, name))
        check_choice("reset", self.reset, ("none", *RESETS))


def explain_lte(run: HeadsRun) -> Iterator[Moment]:
    """Train a small network by LTE and explain every step, merge and reset.

    Yields
    ------
    Moment

    Raises
    ------
    InputError
        If the data set is unknown or has no classes, or a number is out of its range.
    MissingExtraError
        If scikit-learn is not installed.
    """
    source = registry.load(run.data, seed=run.seed)
    if source.classes is None or source.vocabulary is not None:
        required = "a set of classes, no text: digits, breast_cancer, wine or iris"
        raise InputError("data", run.data, required, "a regression, or a text")
    features = source.base.x.shape[1]
    rank = min(RANK, source.classes, features) if run.rank is None else run.rank
    plain = mlp_spec([features, WIDTH, source.classes], "relu")
    config = lte.LteConfig(
        spec=put_lora(plain, FROM_SCRATCH, rank=rank, alpha=2.0 * rank),
        heads=run.heads,
        merge_every=run.merge_every,
        reset=run.reset,
        optimizer=AdamW(lr=0.02),
        seed=run.seed,
    )
    parts = Data(x=source.base.x, y=source.base.y, x_test=source.test.x, y_test=source.test.y)
    each = -(-BATCH // run.heads)
    state = lte.init(config, batch=each)
    start, losses = dict(state.weights), np.zeros(run.heads)
    batches = islice(schedule(run.seed, parts, each * run.heads, 0, run.steps), run.steps)
    for event in lte.iterate(config, state, batches):
        state = event.state
        if event.record is not None:
            losses = np.asarray(event.record.loss)
        loss, accuracy = evaluate(config, state, parts.x_test, parts.y_test)
        yield Moment(
            kind=event.kind,
            step=state.step,
            merges=state.merges,
            title=_title(event.kind, state, losses, run.reset),
            losses=losses,
            loss=loss,
            accuracy=accuracy,
            sites={
                name: _view(config, state, start[f"{name}.W"], name)
                for name, site in config.layout.sites.items()
                if site.lora
            },
        )
