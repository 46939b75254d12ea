"""Mistakes in residual blocks and the order of their norms, and at LoRA's sites over tokens.

Shapes as in ``network``: x (batch, t, width); cotangents d (batch, C, t, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.network.lora import FACTORS
from loko_ref.textbook.filter import FORMULAS

__all__: list[str] = []

F = FORMULAS
Layers = list[Mapping[str, Any]]

# --------------------------------------------------------------- residual branches, their norms


def _is_norm(layers: Sequence[Mapping[str, Any]], j: int) -> int:
    """How many layers from j on are one norm: itself, and its gain where that stands apart."""
    if not 0 <= j < len(layers) or layers[j]["kind"] != "layernorm":
        return 0
    own = layers[j + 1 : j + 2]
    return 2 if own and own[0].get("name") == layers[j]["name"] else 1


def _norm_first(spec: Layers) -> Layers:
    """Residual(f), norm becomes residual(norm, f)."""
    found: Layers = []
    j = 0
    while j < len(spec):
        layer, more = spec[j], _is_norm(spec, j + 1)
        if layer["kind"] == "residual" and more and not _is_norm(layer["layers"], 0):
            layer = {**layer, "layers": [*spec[j + 1 : j + 1 + more], *layer["layers"]]}
            j += more
        found.append(layer)
        j += 1
    return found


def _norm_last(spec: Layers, join: Callable[[Layers, Layers], Layers]) -> Layers:
    """Residual(norm, f) becomes what `join` makes of the norm and f."""
    found: Layers = []
    for layer in spec:
        n = _is_norm(layer["layers"], 0) if layer["kind"] == "residual" else 0
        found += join(layer["layers"][:n], layer["layers"][n:]) if n else [layer]
    return found


def _branch(layers: Layers) -> Mapping[str, Any]:
    return {"kind": "residual", "layers": layers}


def _without_norm(spec: Layers, near: Callable[[Layers, int, int], bool]) -> Layers:
    """Leave out the norms of which ``near(spec, start, stop)`` holds."""
    found: Layers = []
    j = 0
    while j < len(spec):
        more = _is_norm(spec, j)
        if more and near(spec, j, j + more):
            j += more
            continue
        found.append(spec[j])
        j += 1
    return found


def _kind(spec: Layers, j: int) -> str:
    return str(spec[j]["kind"]) if 0 <= j < len(spec) else ""


mutant(
    "RESIDUAL-MISSING",
    "the residual left out",
    "y = f(x) in place of x + f(x).",
    "y = x + f(x)",
    {"add": lambda x, y: y, "add_back": lambda d, inner: inner},
)
mutant(
    "RESIDUAL-TWICE",
    "the residual added twice",
    "y = 2 x + f(x): a block adds x to what its layer has added x to already.",
    "y = x + f(x)",
    {"add": lambda x, y: x + (x + y), "add_back": lambda d, inner: d + (d + inner)},
)
mutant(
    "RESIDUAL-JACOBIAN-MISSING",
    "the cotangent not sent past the branch",
    "dx = f'(x)' d: the part of x itself is missing.",
    "dx = dy + vjp(f, dy)",
    {"add_back": lambda d, inner: inner},
)
mutant(
    "RESIDUAL-JACOBIAN-SKIP-ONLY",
    "the cotangent not sent through the branch",
    "dx = d: lower layers get the residual's part alone.",
    "dx = dy + vjp(f, dy)",
    {"add_back": lambda d, inner: d + 0 * inner},
)
mutant(
    "BLOCK-NORM-FIRST",
    "pre-norm in place of post-norm",
    "x + f(norm(x)) where norm(x + f(x)) is asked for.",
    "x = norm(x + f(x))",
    {"layers": _norm_first},
)
mutant(
    "BLOCK-NORM-LAST",
    "post-norm in place of pre-norm",
    "norm(x + f(x)) where x + f(norm(x)) is asked for.",
    "x = x + f(norm(x))",
    {"layers": lambda spec: _norm_last(spec, lambda norm, f: [_branch(f), *norm])},
)
mutant(
    "BLOCK-RESIDUAL-NORMED",
    "the residual taken after the norm",
    "norm(x) + f(norm(x)) in place of x + f(norm(x)).",
    "x = x + f(norm(x))",
    {"layers": lambda spec: _norm_last(spec, lambda norm, f: [*norm, _branch(f)])},
)
mutant(
    "NORM-FINAL-MISSING",
    "the last norm left out",
    "Pooling reads the tokens as the last block leaves them.",
    "x = norm(x) before the pooling of a pre-norm encoder",
    {"layers": lambda spec: _without_norm(spec, lambda s, j, stop: _kind(s, stop) == "pool")},
)
mutant(
    "NORM-EMBEDDING-MISSING",
    "the norm after the embeddings left out",
    "The first block reads the sum of the tables as it is.",
    "x = norm(token + position + type)",
    {"layers": lambda spec: _without_norm(spec, lambda s, j, _: _kind(s, j - 1) == "embedding")},
)

# ------------------------------------------------------------------------- sites over tokens


def _over_tokens(pick: Callable[[Array], Array]) -> Changes:
    """Change the sum over tokens into one over ``pick(d)``, d (batch, C, t, o)."""

    def outer(d: Array, x: Array) -> Array:
        return np.asarray(F["outer"](pick(d) if d.ndim == 4 else d, x))

    return {"outer": outer, "total": lambda d: F["total"](pick(d) if d.ndim == 4 else d)}


def _only(j: int) -> Callable[[Array], Array]:
    return lambda d: d * (np.arange(d.shape[2]) == j % d.shape[2])[:, None]


_TOKENS = "dA = sum over tokens of outer(du_t, x_t)"

mutant(
    "TOKENS-FIRST",
    "a site's gradient from the first token alone",
    "The sum over tokens is missing: x[:, 0] in place of all.",
    _TOKENS,
    _over_tokens(_only(0)),
)
mutant(
    "TOKENS-LAST",
    "a site's gradient from the last token alone",
    "Each token overwrites the one before in place of adding to it.",
    _TOKENS,
    _over_tokens(_only(-1)),
)
mutant(
    "TOKENS-MEAN",
    "a site's gradient averaged over tokens",
    "Divided by the number of tokens, padding included.",
    _TOKENS,
    _over_tokens(lambda d: d / d.shape[2]),
)


def _on_keys(spec: Layers) -> Layers:
    """Put the LoRA of the queries on keys that have none."""
    found: Layers = []
    for layer in spec:
        if layer["kind"] == "residual":
            layer = _branch(_on_keys(layer["layers"]))
        elif layer["kind"] == "attention" and layer["q"].get("lora") and not layer["k"].get("lora"):
            q = {key: value for key, value in layer["q"].items() if key != "lora"}
            layer = {**layer, "q": q, "k": {**layer["k"], "lora": layer["q"]["lora"]}}
        found.append(layer)
    return found


def _named_keys(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Rename the queries' factors where the keys have none."""
    found = {}
    for name, value in weights.items():
        site, key = name.rsplit(".", 1)
        moved = site.endswith(".q") and key in FACTORS and f"{site[:-1]}k.{key}" not in weights
        found[f"{site[:-1]}k.{key}" if moved else name] = value
    return found


mutant(
    "LORA-ON-KEYS",
    "the queries' LoRA put on the keys",
    "k = Wk x + scale B A x, and q without a branch.",
    "q = Wq x + scale * Bq @ (Aq @ x)",
    {"layers": _on_keys, "named": _named_keys},
)
mutant(
    "ORDER-SORTED",
    "sites in the order of their names",
    "Sorted, as JAX orders a dict's leaves: an attention's k, o, q, v.",
    "theta: linears in the order of the spec, an attention's q, k, v, o",
    {
        key: lambda spec, key=key: sorted(F[key](spec), key=lambda layer: str(layer["name"]))
        for key in ("sites", "sites.weights")
    },
)


def _keys_first(spec: Layers) -> Layers:
    found = list(F["sites"](spec))
    for j in range(len(found) - 1):
        one, two = found[j], found[j + 1]
        if (one["name"], two["name"]) == (f"{one['name'][:-1]}q", f"{one['name'][:-1]}k"):
            found[j], found[j + 1] = two, one
    return found


mutant(
    "ORDER-KEYS-FIRST",
    "LoRA of queries and keys exchanged in theta",
    "The keys' factors stand before the queries'.",
    "theta: linears in the order of the spec, an attention's q, k, v, o",
    {"sites": _keys_first},
)
