"""Networks to state facts about, and changes of their weights.

Shapes: x (batch, ...); weights by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.network.architectures import bert_spec
from loko_ref.network.model import Model, param_shapes
from loko_ref.network.spec import linears
from loko_ref.properties.trial import Got, Problem, Problems, Trial, Unsuitable
from loko_ref.strategies.transformers import Built

Spec = list[dict[str, Any]]
Nets = Callable[[hs.DrawFn, bool], Spec]
"""From a draw, and whether it is to be small, to a spec."""


def nets(draw_spec: Nets) -> Callable[[str], Problems]:
    """Return problems on the specs drawn: weights of order 1, B not 0, and a batch.

    Parameters
    ----------
    draw_spec : callable
        ``(draw, small) -> spec``.
    """

    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        spec, dtype = draw_spec(draw, small), draw(st.dtypes())
        weights = {
            name: draw(st.arrays(shape, dtype=dtype, size=1.0, whole=small))
            for name, shape in param_shapes(spec).items()
        }
        model = Model(spec=spec, weights=weights)
        size = draw(hs.integers(1, 2))
        x = np.asarray(draw(st.batches(model, observation="gaussian", size=size)).x, dtype=dtype)
        if spec[0]["kind"] == "attention":  # which is trivial for one token
            shape = (size, 2 if small else 3, x.shape[-1])
            x = draw(st.arrays(shape, dtype=dtype, size=1.0, whole=small))
        return Problem(inputs={"x": x, "weights": weights}, options={"spec": spec})

    return lambda operation: lambda small: draw(small)


def site(name: str, i: int, o: int, bias: bool = True, r: int = 1) -> dict[str, Any]:
    """Return a linear with LoRA of alpha 2, with biases."""
    lora = {"r": r, "alpha": 2.0, "bias": bias}
    return {"kind": "linear", "name": name, "in": i, "out": o, "bias": bias, "lora": lora}


def head(width: int, outputs: int = 2) -> dict[str, Any]:
    """Return a last linear without LoRA and bias."""
    return {"kind": "linear", "name": "head", "in": width, "out": outputs, "bias": False}


def attention(heads: int, width: int, r: int = 1, **keys: Any) -> dict[str, Any]:
    """Return an attention with LoRA on q, k, v, o."""
    projections = {}
    for key in "qkvo":
        linear = site("", width, width, r=r)
        projections[key] = {k: v for k, v in linear.items() if k not in ("kind", "name")}
    return {"kind": "attention", "name": "0", "heads": heads, **projections, **keys}


def wide(draw: hs.DrawFn, small: bool) -> Spec:
    """Return attention with heads of two features and LoRA of rank 2."""
    heads = draw(hs.integers(1, 2))
    return [attention(heads, 2 * heads, 2), {"kind": "pool", "how": "mean"}, head(2 * heads)]


def bert(draw: hs.DrawFn, small: bool) -> Any:
    """Return a text's spec with a pooler, without padding."""
    return Built(
        bert_spec,
        vocab=4, pad=None, positions=3, layers=1, width=2, heads=1, ff=2, outputs=2, pool="cls",
        dense=True, lora={"r": 1, "alpha": 2.0}, targets=["q"], eps=0.25, activation="relu",
    )  # fmt: skip


def spec_of(t: Trial) -> Spec:
    """Return the problem's spec."""
    spec: Spec = t.options["spec"]
    return spec


def layers(spec: Spec, kind: str) -> Spec:
    """Return every layer of a kind, those inside residual branches too."""
    found = [layer for layer in spec if layer["kind"] == kind]
    for layer in spec:
        found += layers(layer.get("layers", []), kind)
    return found


def norms(spec: Spec) -> Spec:
    """Return the norms outside residual branches."""
    return [layer for layer in spec if layer["kind"] == "layernorm"]


def replaced(spec: Spec, kind: str, **keys: Any) -> Spec:
    """Return a spec with keys of every layer of a kind replaced."""
    found = []
    for layer in spec:
        new = {**layer, **(keys if layer["kind"] == kind else {})}
        if "layers" in layer:
            new["layers"] = replaced(layer["layers"], kind, **keys)
        found.append(new)
    return found


def changed(t: Trial, **changes: Any) -> dict[str, Array]:
    """Return the weights, float64, with some replaced by an array, or by a function of their own.

    Names that the problem's network does not have are passed over.
    """
    weights = {name: np.array(a, dtype=np.float64) for name, a in t.given["weights"].items()}
    for name, change in changes.items():
        if name in weights:
            weights[name] = change(weights[name]) if callable(change) else change
    return weights


def run(
    t: Trial, changes: Mapping[str, Any] | None = None, spec: Spec | None = None, **x: Any
) -> Got:
    """Run with some weights, the spec, or x changed."""
    options = None if spec is None else {"spec": spec}
    return t.run(None, options, weights=changed(t, **(changes or {})), **x)


def same(t: Trial, a: Got, b: Got) -> None:
    """Raise unless both have the same outputs."""
    t.same(a, b, ("z",))


def branches(
    t: Trial, names: tuple[str, ...], zero: tuple[str, ...] = ("W", "B")
) -> dict[str, Any]:
    """Return changes that set weights of all linears whose name ends so to 0."""
    found: dict[str, Any] = {}
    for linear in linears(spec_of(t)):
        if linear["name"].split(".")[-1] in names:
            found |= {f"{linear['name']}.{key}": lambda a: 0 * a for key in zero}
    if not found:
        raise Unsuitable("no such layer")
    return found
