"""Strategies for LTE: a configuration, the heads' initial factors, and the data of a short run.

Shapes: x (steps, batch, i); y (steps, batch, C); factors (heads, r, i) and (heads, o, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hypothesis import assume, reject
from hypothesis import strategies as st

from loko_ref import lte
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.errors import NumericalError
from loko_ref.network.lora import FACTORS
from loko_ref.network.model import param_shapes
from loko_ref.optimizers import SGD, AdaGrad, AdamW
from loko_ref.strategies.matrices import Floats, arrays, dtype_or, frozen
from loko_ref.strategies.networks import models

STEPS = (
    SGD(lr=0.03125),
    SGD(lr=0.03125, momentum=0.5),
    SGD(lr=0.03125, momentum=0.75, nesterov=True, weight_decay=0.25),
    AdaGrad(lr=0.03125, eps=0.25),
    AdamW(lr=0.03125, eps=0.25),
    AdamW(lr=0.03125, beta1=0.5, eps=0.25, weight_decay=0.5),
)
"""Steps of moderate size. eps is large: with a small one, the quotient of a nearly cancelling
gradient would have few significant digits."""


LTE_ALONE = ("realisation", "reset", "optimizer_state", "reduction", "merging", "filter_merge")
"""Options that ``mhlora`` leaves at their defaults."""

LARGEST = 100.0
"""A run in which an entry of theta grows beyond this counts as divergent, and is not drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LteRun:
    """A run of LTE on recorded data.

    Attributes
    ----------
    config : LteConfig
        All options.
    weights, factors : dict of str to array
        The initial shared weights, and each head's factors; B is not 0.
    x, y : arrays
        One batch per step, for all heads; y one-hot, or real rows for ``mse``.
    redraws : dict of str to array (merges, heads, r, i)
        A after each merge, for ``reset="AB"``; else empty.
    """

    config: lte.LteConfig
    weights: Mapping[str, Floats]
    factors: Mapping[str, Floats]
    x: Floats
    y: Floats
    redraws: Mapping[str, Floats]

    def state(self) -> lte.LteState:
        """Return the state before the first step."""
        c, batch = self.config, self.x.shape[1]
        each = batch // c.heads if c.data == "chunks" and c.mode == "lte" else batch
        return lte.init(c, weights=self.weights, factors=self.factors, batch=each)

    def run(self) -> tuple[lte.LteState, lte.Trace]:
        """Run it by :func:`loko_ref.lte.run`."""
        return lte.run(
            self.config,
            self.state(),
            zip(self.x, self.y, strict=True),
            redraws=(lambda k: {n: a[k - 1] for n, a in self.redraws.items()})
            if self.redraws
            else None,
        )

    def arguments(self) -> dict[str, Any]:
        """Return the inputs and options of the catalogue's ``lte.run``, by name."""
        c = self.config
        known = [*(o.name for o in OPERATIONS["lte.run"].options), "p0"]
        kind = next(name for name, k in lte.config.OPTIMIZERS.items() if isinstance(c.optimizer, k))
        return {
            "x": self.x,
            "y": self.y,
            "weights": dict(self.weights),
            "factors": dict(self.factors),
            **({"redraws": dict(self.redraws)} if self.redraws else {}),
            **{name: getattr(c, name) for name in known if hasattr(c, name)},
            "spec": [dict(layer) for layer in c.spec],
            "optimizer": kind,
            **{k: getattr(c.optimizer, k) for k in known if hasattr(c.optimizer, k)},
        }


@st.composite
def _choices(draw: st.DrawFn, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Draw options that are compatible with each other and with the fixed ones."""
    usual = {f.name: f.default for f in fields(lte.LteConfig)}
    alone = any(fixed.get(name, usual[name]) != usual[name] for name in LTE_ALONE)
    optimizer, losses = draw(st.sampled_from(STEPS)), ["cross_entropy", "mse"]
    if fixed.get("filter_merge", "keep") != "keep":
        optimizer = lte.Loko(observation="gaussian" if fixed.get("loss") == "mse" else "glm")
    optimizer = fixed.get("optimizer", optimizer)
    if isinstance(optimizer, lte.Loko):
        losses = ["mse" if optimizer.observation == "gaussian" else "cross_entropy"]
    if fixed.get("mode", "lte" if alone or draw(st.booleans()) else "mhlora") == "lte":
        kept = fixed.get("filter_merge", "keep") != "keep"
        found = {
            "mode": "lte",
            "reset": draw(st.sampled_from(["none", "B", "AB"])),
            "optimizer_state": "keep" if kept else draw(st.sampled_from(["keep", "reset"])),
            "realisation": draw(st.sampled_from(["shared", "copies"])),
            "reduction": draw(st.sampled_from(["all", "own"])),
        }
    else:
        found = {"mode": "mhlora", "scaling": draw(st.sampled_from(["mean", "sum"]))}
    return found | {
        "merge_every": draw(st.integers(1, 3)),
        "data": draw(st.sampled_from(["chunks", "replicated"])),
        "loss": draw(st.sampled_from(losses)),
        "optimizer": optimizer,
    }


@st.composite
def lte_runs(
    draw: st.DrawFn,
    /,
    *,
    max_heads: int = 3,
    max_steps: int = 4,
    max_chunk: int = 2,
    max_width: int = 3,
    max_depth: int = 2,
    dtype: str | None = None,
    **fixed: Any,
) -> LteRun:
    """Draw a short run of LTE that does not diverge: network, options, every head's factors, data.

    Parameters
    ----------
    max_heads, max_steps : int
        Bounds on the number of heads and of steps.
    max_chunk : int
        The most samples per head and step (with ``replicated``, shared by all heads).
    max_width, max_depth : int
        Bounds on the widths and the number of linears.
    dtype : str, optional
        float64 or float32; None draws it.
    **fixed
        Fields of :class:`loko_ref.lte.LteConfig` but the spec, taken as given.
    """
    dtype = draw(dtype_or(dtype))
    net = draw(models(max_width=max_width, max_depth=max_depth, min_outputs=2, dtype=dtype))
    heads = fixed.pop("heads") if "heads" in fixed else draw(st.integers(1, max_heads))
    chosen = draw(_choices(fixed)) | fixed
    spec: Sequence[dict[str, Any]] = [dict(layer) for layer in net.spec]
    filters = isinstance(chosen["optimizer"], lte.Loko) and chosen["mode"] == "mhlora"
    if len(spec) > 1 and not filters and draw(st.booleans()):
        spec[-1].pop("lora", None)  # a layer without LoRA: one copy per head
    config = lte.LteConfig(spec=spec, heads=heads, **chosen)
    shapes = param_shapes(spec)
    factors = {
        name: draw(arrays((heads, *shape), dtype=dtype, size=1.0))
        for name, shape in shapes.items()
        if name.rsplit(".", 1)[1] in FACTORS
    }
    steps, chunk = draw(st.integers(1, max_steps)), draw(st.integers(1, max_chunk))
    batch = chunk * heads if config.data == "chunks" else chunk
    x = draw(arrays((steps, batch, config.inputs), dtype=dtype, size=1.0))
    C = config.outputs
    y = draw(arrays((steps, batch, C), dtype=dtype))
    if config.loss == "cross_entropy":  # one-hot where y is largest
        y = frozen((y.argmax(axis=-1)[..., None] == range(C)).astype(dtype))
    redraws = {}
    if config.reset == "AB" and config.mode == "lte":
        merges = max(steps // config.merge_every, 1)
        redraws = {
            name: draw(arrays((merges, *a.shape), dtype=dtype, size=1.0))
            for name, a in factors.items()
            if name.endswith(".A")
        }
    weights = {name: net.weights[name] for name in shapes if name not in factors}
    run = LteRun(config=config, weights=weights, factors=factors, x=x, y=y, redraws=redraws)
    try:
        grown = float(abs(run.run()[0].theta).max())
    except NumericalError:
        reject()
    assume(grown <= LARGEST)
    return run
