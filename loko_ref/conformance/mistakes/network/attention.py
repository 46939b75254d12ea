"""Mistakes in attention: its scores and their softmax, its heads, its masks.

Shapes as in ``network``: x (batch, t, width); q, k, values (batch, heads, t, c); s, a (batch,
heads, t, t); cotangents with an axis of outputs behind the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS

# ---------------------------------------------------------------------------- scores, softmax


def _scores_by(factor: Callable[[Array], float]) -> Changes:
    """Scores times a factor of q, and their derivative with it."""
    return {
        "scores": lambda v, q, k: F["scores"](v, q, k) * factor(q),
        "scores_back": lambda v, q, k, ds: F["scores_back"](v, q, k, ds * factor(q)),
    }


_SCORES = "s = q @ k.T / sqrt(c), c = width / heads"

mutant(
    "SCORES-UNSCALED",
    "1 / sqrt(c) left out of the scores",
    "softmax(q k') in place of softmax(q k' / sqrt(c)).",
    _SCORES,
    {"score_scale": lambda c: 1.0},
)
mutant(
    "SCORES-SCALE-WIDTH",
    "the scores scaled by the model's width",
    "1 / sqrt(heads c) in place of 1 / sqrt(c), c the width of one head.",
    _SCORES,
    _scores_by(lambda q: q.shape[-3] ** -0.5),
)
mutant(
    "SCORES-SCALED-TWICE",
    "the scores scaled twice",
    "1 / c: q is scaled, and q k' once more (or sqrt left out).",
    _SCORES,
    {"score_scale": lambda c: 1 / c},
)
mutant(
    "SCORES-JACOBIAN-UNSCALED",
    "1 / sqrt(c) missing in the Jacobian",
    "The scores are scaled, their cotangents are not.",
    "dq = ds @ k / sqrt(c), dk = ds.T @ q / sqrt(c)",
    {"scores_back": lambda v, q, k, ds: F["scores_back"](v, q, k, ds * q.shape[-1] ** 0.5)},
)


def _swapped_back(v: Values, q: Array, k: Array, ds: Array) -> tuple[Array, Array]:
    dk, dq = F["scores_back"](v, k, q, ds)
    return dq, dk


mutant(
    "SCORES-SWAPPED",
    "queries and keys exchanged",
    "k q': each token's weights are those that others give to it.",
    "s = q @ k.T",
    {"scores": lambda v, q, k: F["scores"](v, k, q), "scores_back": _swapped_back},
)


def _turned(a: Array) -> Array:
    return np.swapaxes(a, -1, -2)


mutant(
    "ATTEND-QUERIES",
    "softmax over the queries",
    "The weights of each key sum to 1 over the queries: the wrong axis.",
    "a = softmax(s, axis=-1): over the keys",
    {
        "attend": lambda v, s, seen: tuple(map(_turned, F["attend"](v, _turned(s), _turned(seen)))),
        "attend_back": lambda da, a: _turned(F["attend_back"](_turned(da), _turned(a))),
    },
)
mutant(
    "ATTEND-JACOBIAN-MISSING",
    "the softmax left out of attention's Jacobian",
    "ds = da.",
    "ds = a * (da - (a * da).sum(-1))",
    {"attend_back": lambda da, a: da + 0 * a},
)
mutant(
    "ATTEND-JACOBIAN-NO-SUM",
    "ds = a da",
    "The sum over the keys is missing: a softmax that is not normalised.",
    "ds = a * (da - (a * da).sum(-1))",
    {"attend_back": lambda da, a: a * da},
)
mutant(
    "ATTEND-JACOBIAN-DIAGONAL",
    "attention's softmax taken for its diagonal",
    "ds = a (1 - a) da.",
    "ds = a * (da - (a * da).sum(-1))",
    {"attend_back": lambda da, a: a * (1 - a) * da},
)


def _paths(queries: float, keys: float) -> Changes:
    def back(v: Values, q: Array, k: Array, ds: Array) -> tuple[Array, Array]:
        dq, dk = F["scores_back"](v, q, k, ds)
        return queries * dq, keys * dk

    return {"scores_back": back}


_PATHS = "dx = Wq.T @ dq + Wk.T @ dk + Wv.T @ dv"

mutant(
    "QUERIES-JACOBIAN-MISSING",
    "the path through the queries missing in the Jacobian",
    "dq = 0: the queries are taken for constants.",
    _PATHS,
    _paths(0.0, 1.0),
)
mutant(
    "KEYS-JACOBIAN-MISSING",
    "the path through the keys missing in the Jacobian",
    "dk = 0: the keys are taken for constants.",
    _PATHS,
    _paths(1.0, 0.0),
)
mutant(
    "SCORES-JACOBIAN-MISSING",
    "the derivative through the values alone",
    "dq = dk = 0: the weights of attention are taken for constants.",
    _PATHS,
    _paths(0.0, 0.0),
)


def _dk_not_turned(v: Values, q: Array, k: Array, ds: Array) -> tuple[Array, Array]:
    return F["scores_back"](v, q, k, ds)[0], F["scores_back"](v, k, q, ds)[0]


mutant(
    "KEYS-JACOBIAN-NOT-TURNED",
    "ds not transposed for the keys",
    "dk = ds q in place of ds' q.",
    "dk = ds.T @ q / sqrt(c)",
    {"scores_back": _dk_not_turned},
)
mutant(
    "VALUES-JACOBIAN-MISSING",
    "the path through the values missing in the Jacobian",
    "dv = 0: the values are taken for constants.",
    "da = dy @ v.T, dv = a.T @ dy",
    {
        "values_back": lambda a, values, dy: (
            F["values_back"](a, values, dy)[0],
            0 * F["values_back"](a, values, dy)[1],
        )
    },
)
mutant(
    "VALUES-JACOBIAN-NOT-TURNED",
    "a not transposed for the values",
    "dv = a dy in place of a' dy.",
    "da = dy @ v.T, dv = a.T @ dy",
    {"values_back": lambda a, values, dy: (F["values_back"](a, values, dy)[0], a @ dy)},
)

# ------------------------------------------------------------------------------------- heads


def _split_interleaved(x: Array, heads: int) -> Array:
    return np.moveaxis(x.reshape(*x.shape[:-1], -1, heads), -1, -3)


def _merge_interleaved(x: Array) -> Array:
    x = np.moveaxis(x, -3, -1)
    return x.reshape(*x.shape[:-2], -1)


def _split_unswapped(x: Array, heads: int) -> Array:
    *lead, t, d = x.shape
    return x.reshape(*lead, heads, t, d // heads)


def _merge_unswapped(x: Array) -> Array:
    *lead, heads, t, c = x.shape
    return x.reshape(*lead, t, heads * c)


_HEADS = "head h owns columns h*c to (h+1)*c: x.reshape(batch, t, heads, c).swapaxes(1, 2)"

mutant(
    "HEADS-INTERLEAVED",
    "heads interleaved",
    "Head h owns every heads-th column from h on: reshape(t, c, heads).",
    _HEADS,
    {"split_heads": _split_interleaved, "merge_heads": _merge_interleaved},
)
mutant(
    "HEADS-UNSWAPPED",
    "heads cut without the swap of axes",
    "reshape(batch, heads, t, c) at once, and back: a head gets whole tokens of every head.",
    _HEADS,
    {"split_heads": _split_unswapped, "merge_heads": _merge_unswapped},
)
mutant(
    "HEADS-MERGED-UNSWAPPED",
    "heads merged without the swap of axes",
    "(batch, heads, t, c) is reshaped to (batch, t, heads c) as it stands.",
    "y.swapaxes(1, 2).reshape(batch, t, heads * c)",
    {
        "merge_heads": _merge_unswapped,
        "split_back": lambda v, d: F["merge_heads"](d),
        "merge_back": lambda v, d, heads: _split_unswapped(d, heads),
    },
)
mutant(
    "HEADS-ONE",
    "one head in place of several",
    "The whole width is one head, scaled by its own root.",
    _HEADS,
    {"split_heads": lambda x, heads: F["split_heads"](x, 1)},
)


def _without_biases(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {k: a for k, a in weights.items() if not k.endswith((".q.b", ".k.b", ".v.b"))}


mutant(
    "HEADS-BIASES-MISSING",
    "biases of q, k, v left out",
    "Wq x, Wk x, Wv x alone (a model with qkv_bias=False); the output's bias is added.",
    "q, k, v = Wq x + bq, Wk x + bk, Wv x + bv",
    {"named": _without_biases},
)

# ------------------------------------------------------------------------------------- masks


def _attend_then_hide(v: Values, s: Array, seen: Array) -> tuple[Array, Array]:
    (a,) = F["attend"](v, s, np.ones_like(seen))
    return a * seen, a


def _hide_back(da: Array, hidden: Array, a: Array) -> Array:
    return hidden * da - a * (hidden * da).sum(axis=-1, keepdims=True)


def _by_mask(change: Callable[[Array], Array | None]) -> Changes:
    def seen(v: Values, mask: Array | None, t: int, causal: bool) -> Array:
        return np.asarray(F["seen"](v, None if mask is None else change(mask), t, causal))

    return {"seen": seen}


def _hidden_queries(v: Values, mask: Array | None, t: int, causal: bool) -> Array:
    seen = np.ones((1, 1, t, 1), dtype=bool) if mask is None else mask[:, None, :, None]
    return np.asarray(seen & F["seen"](v, None, t, causal))


_MASK = "s[..., hidden] = -inf before the softmax over the keys"

mutant(
    "MASK-AFTER-SOFTMAX",
    "the mask applied after the softmax",
    "Hidden weights are set to 0 and the others not made to sum to 1 again.",
    _MASK,
    {"attend": _attend_then_hide, "attend_back": _hide_back},
)


def _finite(c: float, *, added: bool) -> Changes:
    """Scores of hidden keys set to -c, or lowered by c."""

    def attend(v: Values, s: Array, seen: Array) -> Any:
        low = np.where(seen, s, v.keep("hidden", s - c) if added else -c)
        return (*F["attend"](v, low, np.ones_like(seen)), seen)

    def attend_back(da: Array, a: Array, seen: Array) -> Any:
        ds = F["attend_back"](da, a)
        return ds if added else seen * ds

    return {"attend": attend, "attend_back": attend_back}


mutant(
    "MASK-FINITE",
    "hidden scores set to a finite number",
    "Hidden keys get a score that is not low enough: they keep a weight, the more the lower the "
    "others' scores are.",
    _MASK,
    lambda size: _finite(size, added=False),
    sizes=(1.0, 5.0, 10.0, 20.0),
    example=8.0,
)
mutant(
    "MASK-FINITE-ADDED",
    "hidden scores lowered by a finite number",
    "A number that is not large enough is subtracted from the scores of hidden keys: they keep a "
    "weight.",
    _MASK,
    lambda size: _finite(size, added=True),
    sizes=(1.0, 5.0, 10.0, 20.0),
    example=8.0,
)
mutant(
    "MASK-ATTENTION-IGNORED",
    "padding seen by attention",
    "Padded tokens are keys like any other; pooling leaves them out.",
    _MASK,
    _by_mask(lambda mask: None),
)
mutant(
    "MASK-IGNORED",
    "padding taken for text",
    "Padded tokens are keys like any other, and are pooled too.",
    "mask = ids != pad, for attention and for mean pooling",
    {"mask": lambda given, real: None},
)
mutant(
    "MASK-INVERTED",
    "the mask upside down",
    "True marks padding (torch's key_padding_mask) where it should mark what is real.",
    _MASK,
    _by_mask(np.logical_not),
)
mutant(
    "MASK-QUERIES",
    "the mask on the queries",
    "Padded queries see nothing, and padding is seen by the others: the wrong axis.",
    "mask[:, None, None, :], the keys' axis",
    {"seen": _hidden_queries},
)
mutant(
    "MASK-FROM-IDS",
    "the mask's channel ignored",
    "Padding is told by the ids alone.",
    "the channel 'mask' where there is one, else ids != pad",
    {"mask": lambda given, real: real},
)
mutant(
    "MASK-NOT-MOVED",
    "the mask not moved on with tokens put first",
    "The learnt tokens' entries stand behind the others: padding is told in the wrong places.",
    "mask = concatenate([ones, mask])",
    {"join_mask": lambda head, mask: np.concatenate([mask, head], axis=1)},
)
mutant(
    "CAUSAL-MISSING",
    "the causal mask left out",
    "Every token sees those behind it.",
    "np.tri(t)",
    {"causal": lambda t: np.ones((t, t), dtype=bool)},
)
mutant(
    "CAUSAL-STRICT",
    "the causal mask hides a token's own key",
    "Off by one: key < query in place of key <= query.",
    "np.tri(t): key <= query",
    {"causal": lambda t: np.tri(t, k=-1, dtype=bool)},
)
mutant(
    "CAUSAL-AHEAD",
    "the causal mask shows the next token",
    "Off by one: key <= query + 1.",
    "np.tri(t): key <= query",
    {"causal": lambda t: np.tri(t, k=1, dtype=bool)},
)
mutant(
    "CAUSAL-REVERSED",
    "the causal mask transposed",
    "A token sees those behind it and not those before.",
    "np.tri(t): key <= query",
    {"causal": lambda t: np.tri(t, dtype=bool).T},
)
