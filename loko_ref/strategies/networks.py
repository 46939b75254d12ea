"""Strategies for one site's factors and for multilayer perceptrons with LoRA.

Shapes: A (r, i); B (o, r); W (o, i); b (o,).
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from loko_ref.network.model import Model, mlp_spec, param_shapes
from loko_ref.strategies.matrices import Floats, arrays, dtype_or


@st.composite
def factors(
    draw: st.DrawFn, *, max_width: int = 6, bias: bool | None = None, dtype: str | None = None
) -> dict[str, Floats]:
    """Draw one site's trained factors: A (r, i), B (o, r), possibly bA (r,), bB (o,).

    Unlike at initialization, B is not 0.

    Parameters
    ----------
    max_width : int
        Bound on i and o; 1 <= r <= min(i, o).
    bias : bool, optional
        Whether there are bA and bB; None draws it.
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
    whole: bool = False,
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
    whole : bool
        Whether to draw weights that are whole numbers within ±2.
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
    weights = {
        name: draw(arrays(s, dtype=dtype, size=2.0, whole=whole)) for name, s in shapes.items()
    }
    return Model(spec=spec, weights=weights, trainable=tuple(shapes) if train_all else ())
