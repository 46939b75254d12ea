"""Mistakes at the two ends of a transformer: tables, positions, patches; pooling and the pooler.

Shapes as in ``network``: x (batch, t, width); ids, types, rows, real (batch, t).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.filter import FORMULAS

__all__: list[str] = []

F = FORMULAS
Layers = list[Mapping[str, Any]]


def _shifted_rows(by: int) -> Changes:
    return {"position_rows": lambda real, start: F["position_rows"](real, start) + by}


def _numbered_over_padding(real: Array, start: int | None) -> Array:
    rows = np.broadcast_to(np.arange(real.shape[1]), real.shape)
    return rows if start is None else rows + start + 1


def _patched(image: Array, ph: int, pw: int, axes: tuple[int, ...]) -> Array:
    batch, channels, h, w = image.shape
    cut = image.reshape(batch, channels, h // ph, ph, w // pw, pw)  # axes 0 to 5
    return cut.transpose(0, *axes).reshape(batch, -1, channels * ph * pw)


def _positions_first(spec: Layers) -> Layers:
    found = list(spec)
    for j in range(len(spec) - 1):
        if (spec[j]["kind"], spec[j + 1]["kind"]) == ("prepend", "positions"):
            found[j], found[j + 1] = spec[j + 1], spec[j]
    return found


def _no_pooler_tanh(spec: Layers) -> Layers:
    pools = [j for j, layer in enumerate(spec) if layer["kind"] == "pool"]
    return [k for j, k in enumerate(spec) if k["kind"] != "tanh" or not pools or j < pools[0]]


mutant(
    "POSITION-MISSING",
    "positions left out",
    "No row of the position table is added.",
    "x = token[ids] + position[rows]",
    {"embed_position": lambda table, rows: 0 * table[rows]},
)
mutant(
    "POSITION-FROM-ONE",
    "positions one row too far",
    "The first token reads row 1 (by RoBERTa's rule pad + 2).",
    "rows 0, 1, 2, ... (RoBERTa: pad + 1, pad + 2, ...)",
    _shifted_rows(1),
)
mutant(
    "POSITION-FROM-PAD",
    "RoBERTa's positions one row too near",
    "The first real token reads row pad in place of pad + 1.",
    "start + cumsum(real)",
    {
        "position_rows": lambda real, start: (
            F["position_rows"](real, start) - (0 if start is None else real)
        )
    },
)
mutant(
    "POSITION-FROM-ZERO",
    "BERT's positions in RoBERTa",
    "Rows 0, 1, 2, ... where they begin at pad + 1.",
    "start + cumsum(real)",
    {"position_rows": lambda real, start: F["position_rows"](real, None)},
)
mutant(
    "POSITION-OVER-PADDING",
    "RoBERTa's positions counted over padding",
    "Padding counts as a token: pad + 1 + j for token j.",
    "start + cumsum(real)",
    {"position_rows": _numbered_over_padding},
)


def _real_alone(first: int) -> Changes:
    """Return positions of real tokens alone, where every token has a number of its own."""

    def rows(real: Array, start: int | None) -> Array:
        counted = np.maximum(np.cumsum(real, axis=1) - 1 + first, 0)
        return counted if start is None else np.asarray(F["position_rows"](real, start))

    return {"position_rows": rows}


mutant(
    "POSITION-REAL-ALONE",
    "positions counted over real tokens alone",
    "Row 0 is the first real token's: cumsum(real) - 1; every token has a row, padding too.",
    "rows 0, 1, 2, ... (RoBERTa: pad + 1, pad + 2, ...)",
    _real_alone(0),
)
mutant(
    "POSITION-REAL-FROM-ONE",
    "positions counted over real tokens alone, from 1",
    "RoBERTa's rule without its start: cumsum(real).",
    "rows 0, 1, 2, ... (RoBERTa: pad + 1, pad + 2, ...)",
    _real_alone(1),
)
mutant(
    "POSITION-BEFORE-CLS",
    "positions added before [CLS] is put first",
    "[CLS] has no position, and every patch reads the row before its own.",
    "x = concatenate([cls, patches]) + position",
    {"layers": _positions_first},
)
mutant(
    "TYPE-MISSING",
    "token types left out",
    "No row of the type table is added.",
    "x = token[ids] + position[rows] + type[types]",
    {"embed_type": lambda table, types: 0 * table[types]},
)
mutant(
    "TYPE-ZERO",
    "token types ignored",
    "Every token reads the type table's row 0.",
    "type[types]",
    {"embed_type": lambda table, types: table[0 * types]},
)
mutant(
    "EMBEDDING-SCALED",
    "the token embedding multiplied by sqrt(width)",
    "As in the first transformer; BERT and RoBERTa have no such factor.",
    "token[ids]",
    {"embed_token": lambda table, ids: table[ids] * table.shape[1] ** 0.5},
)
mutant(
    "PATCH-CHANNELS-LAST",
    "patches flattened channels last",
    "Each patch as (h, w, channels); a convolution's kernel is (channels, h, w).",
    "patch.reshape(channels * ph * pw)",
    {"patches": lambda image, ph, pw: _patched(image, ph, pw, (2, 4, 3, 5, 1))},
)
mutant(
    "PATCH-TURNED",
    "patches flattened column by column",
    "Each patch as (channels, w, h).",
    "patch.reshape(channels * ph * pw)",
    {"patches": lambda image, ph, pw: _patched(image, ph, pw, (2, 4, 1, 5, 3))},
)
mutant(
    "PATCH-COLUMNS",
    "patches in the order of columns",
    "Down the first column of patches, then the second; positions then belong to others.",
    "patches row by row",
    {"patches": lambda image, ph, pw: _patched(image, ph, pw, (4, 2, 1, 3, 5))},
)
mutant(
    "CLS-LAST",
    "[CLS] put last",
    "The learnt tokens stand behind the others.",
    "concatenate([cls, x])",
    {
        "join": lambda head, x: np.concatenate([x, head], axis=1),
        "join_back": lambda d, count: d[:, :, : d.shape[2] - count],
        "join_mask": lambda head, mask: np.concatenate([mask, head], axis=1),
    },
)
mutant(
    "POOL-CLS-FOR-MEAN",
    "the first token in place of the mean",
    "[CLS] pooling where the mean is asked for.",
    "(x * mask).sum(1) / mask.sum(1)",
    {"pool.mean": F["pool.cls"]},
)
mutant(
    "POOL-MEAN-FOR-CLS",
    "the mean in place of the first token",
    "Mean pooling over real tokens where [CLS] is asked for.",
    "x[:, 0]",
    {"pool.cls": F["pool.mean"]},
)
mutant(
    "POOL-LAST-FOR-CLS",
    "the last token in place of the first",
    "As a decoder's classifier has it.",
    "x[:, 0]",
    {"pool.cls": lambda mask: F["pool.cls"](mask)[:, ::-1]},
)
mutant(
    "POOL-PADDING",
    "padding averaged in",
    "The mean over all tokens.",
    "(x * mask).sum(1) / mask.sum(1)",
    {"pool.mean": lambda mask: F["pool.mean"](np.ones_like(mask))},
)
mutant(
    "POOL-LENGTH",
    "the sum of real tokens over the length with padding",
    "Padding is left out of the sum and counted in the divisor.",
    "(x * mask).sum(1) / mask.sum(1)",
    {"pool.mean": lambda mask: mask / mask.shape[1]},
)
mutant(
    "POOL-SUM",
    "the sum in place of the mean",
    "Not divided by the number of tokens.",
    "(x * mask).sum(1) / mask.sum(1)",
    {"pool.mean": lambda mask: mask * 1.0},
)
mutant(
    "POOLER-TANH-MISSING",
    "the pooler's tanh left out",
    "Two linears in a row behind [CLS].",
    "tanh(dense(x[:, 0]))",
    {"layers": _no_pooler_tanh},
)
