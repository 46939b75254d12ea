"""A merge of LTE explained: two heads of rank 1 on one linear layer, each quantity with its label.

The run takes three steps, merges, takes three more and merges again, by :mod:`loko_ref.lte`; each
number shown is compared with its plain equation, computed here from the factors.

Shapes: W (o, i); A (r, i), B (o, r) and delta (o, i) of each head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loko_ref import lte
from loko_ref.explain.steps import Excerpt, Quantity
from loko_ref.optimizers import SGD

HEADS, EVERY, MERGES, RATE = 2, 3, 2, 0.2
SPEC = [
    {"kind": "linear", "name": "0", "in": 4, "out": 3, "bias": False, "lora": {"r": 1, "alpha": 2}}
]
SCALE = 2.0
"""alpha / r."""

Numbers = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Merge:
    """One merge, explained: a title, the quantities in dataflow order, and the effects."""

    title: str
    quantities: list[Quantity]
    outcome: list[str]


def _quantity(
    name: str,
    value: Numbers,
    equation: str,
    labels: str,
    meaning: str,
    plain: Numbers | None = None,
) -> Quantity:
    rows, columns = value.shape
    excerpt = Excerpt(
        rows=[str(k) for k in range(rows)], columns=[str(k) for k in range(columns)], values=value
    )
    residual = None
    if plain is not None:
        residual = float(np.abs(value - plain).max() / max(np.abs(plain).max(), 1e-300))
    return Quantity(
        key=name,
        name=name,
        equation=equation,
        meaning=meaning,
        labels=tuple(labels.split()),
        axes="",
        value=value,
        excerpt=excerpt,
        residual=residual,
    )


def _batches(rng: np.random.Generator) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield batches of four samples, two per head, of a linear map that W has to become."""
    wanted = np.array([[1.0, -1.0, 0.5, 0.0], [0.0, 2.0, -0.5, 1.0], [1.0, 1.0, 0.0, -1.0]])
    for _ in range(EVERY * MERGES):
        x = rng.standard_normal((2 * HEADS, 4))
        yield x, x @ wanted.T


def merges() -> Iterator[Merge]:
    """Run LTE and explain each merge.

    Examples
    --------
    >>> first, second = merges()
    >>> [q.name for q in second.quantities][-3:]
    ['W', 'W of head 0', 'singular values of W - W0']
    """
    rng = np.random.default_rng(0)
    config = lte.LteConfig(
        spec=SPEC, heads=HEADS, merge_every=EVERY, loss="mse", optimizer=SGD(lr=RATE)
    )
    start = lte.init(config, weights={"0.W": np.zeros((3, 4))})
    first = before = start.weights["0.W"]
    old: Numbers = np.zeros_like(_deltas(config, start))
    number = 0
    for event in lte.iterate(config, start, _batches(rng)):
        if event.kind == "merge":
            number += 1
            yield _explained(number, config, event.state, first, before, old)
            before = event.state.weights["0.W"]
            old = _deltas(config, event.state)


def _deltas(config: lte.LteConfig, state: lte.LteState) -> Numbers:
    parts = config.layout.site(state.theta, "0")
    return SCALE * parts["B"] @ parts["A"]


def _explained(
    number: int,
    config: lte.LteConfig,
    state: lte.LteState,
    first: Numbers,
    before: Numbers,
    old: Numbers,
) -> Merge:
    parts, now = config.layout.site(state.theta, "0"), _deltas(config, state)
    found = [_quantity("W before", before, "W", "LTE-1", "The weight that all heads shared.")]
    for head in range(HEADS):
        who = f"of head {head}"
        found += [
            _quantity(f"A {who}", parts["A"][head], "trained", "LTE-1", "Its down factor."),
            _quantity(f"B {who}", parts["B"][head], "trained", "LTE-1", "Its up factor."),
            _quantity(
                f"delta {who}",
                now[head],
                "(alpha / r) B A",
                "LORA-2 LTE-3",
                "The head's update since the start of the run.",
            ),
            _quantity(
                f"delta - delta' {who}",
                now[head] - old[head],
                "delta - (delta at the last merge)",
                "LTE-3 LTE-5",
                "The update since the last merge: the rest is in W already.",
            ),
        ]
    W = state.weights["0.W"]
    plain = before + (now - old).mean(axis=0)
    seen = W + now[0] - now[0]
    values = np.linalg.svd(W - first, compute_uv=False)[None]
    found += [
        _quantity("W", W, "W + mean(delta - delta')", "LTE-5", "The merged weight.", plain),
        _quantity(
            "W of head 0",
            seen,
            "W + delta - delta', delta' <- delta",
            "LTE-3 LTE-5",
            "The weight that a head uses right after the merge: W itself, as for every other head.",
            W,
        ),
        _quantity(
            "singular values of W - W0",
            values,
            "svd(W - W0)",
            "LTE-5",
            f"The rank is at most heads * r = {HEADS}: the others are 0 but for roundoff.",
        ),
    ]
    total = float(np.abs(W - first - now.mean(axis=0)).max())
    outcome = [
        f"The merges telescope: W is W0 + mean(delta) up to {total:.1g}, whatever was merged "
        "before.  [LTE-5]",
        "Each head continues with its own A and B; only these are communicated, not W.  [LTE-9]",
    ]
    title = f"merge {number}, after step {state.step}: {HEADS} heads of rank 1"
    return Merge(title=title, quantities=found, outcome=outcome)
