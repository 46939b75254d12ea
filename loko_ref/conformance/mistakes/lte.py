"""Mistakes in LTE: the heads, the merge, the resets, the optimizers across merges.

Those in what a run holds beside (LoKO in the heads, weight copies, evaluation) are in
``lte_run``. Shapes as in ``textbook.lte``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.lte import LTE_FORMULAS

__all__: list[str] = []

F = LTE_FORMULAS

mutant(
    "LTE-SCALE-ALPHA",
    "LTE: alpha for alpha / r",
    "The heads' branches and merges are scaled by alpha, not divided by the rank.",
    "scale = alpha / r",
    {"lte.scale": lambda alpha, r: alpha},
)
mutant(
    "LTE-MERGE-SUM",
    "LTE: merge by sum",
    "W grows by the sum of the heads' deltas; it is their mean.",
    "W = W + mean(delta - delta_merged)",
    {"lte.merged": lambda W, now, old: W + sum(now) - sum(old)},
)
mutant(
    "LTE-MERGE-TWICE-MEAN",
    "LTE: 1 / heads twice",
    "The mean of the deltas is divided by the number of heads once more.",
    "W = W + mean(delta - delta_merged)",
    {"lte.merged": lambda W, now, old: W + (sum(now) - sum(old)) / len(now) ** 2},
)
mutant(
    "LTE-MERGE-UNCORRECTED",
    "LTE: the last merge is merged again",
    "W grows by the mean of the whole deltas at every merge; what was merged before must come off.",
    "W = W + mean(delta - delta_merged)",
    {"lte.merged": lambda W, now, old: W + sum(now) / len(now)},
)
mutant(
    "LTE-HEAD-UNCORRECTED",
    "LTE: a head counts its merged part twice",
    "A head adds its whole delta to the merged weight, which holds its share of the last merge.",
    "y = W x + scale * (B A - B_merged A_merged) x",
    {"lte.seen": lambda W, now, old: W + now},
)
mutant(
    "LTE-RESET-FORGETS",
    "LTE: a reset that leaves what was last merged",
    "B is reset, A_merged and B_merged are not: heads see W - delta', and the next merge takes the "
    "last one out again. The authors' published code does this.",
    "A_merged, B_merged = A, 0",
    {"lte.remembered": lambda p, old, reset: p},
)
mutant(
    "LTE-REMEMBERS-NOTHING",
    "LTE: what was merged is never remembered",
    "The factors last merged stay 0: heads count their merged part twice, and so does each merge.",
    "A_merged, B_merged = A, B",
    {"lte.remembered": lambda p, old, reset: None},
)
mutant(
    "LTE-GRADIENT-AT-DIFFERENCE",
    "LTE: gradients at A - A_merged, B - B_merged",
    "The gradients use the factors less those last merged; they use the full A and B.",
    "dA = scale * B.T @ G",
    {
        "lte.at": lambda p, old: (
            p if old is None else {k: a - old[k] if k in old else a for k, a in p.items()}
        )
    },
)
mutant(
    "LTE-OWN-MEAN",
    "LTE: each head descends its own mean where the mean over all is asked for",
    "1 / heads is missing from the gradients: SGD is faster by the number of heads.",
    "loss = mean over all heads' samples",
    {"lte.reduce": lambda dz, heads, reduction: dz},
)
mutant(
    "LTE-REDUCED-TWICE",
    "LTE: 1 / heads twice in the gradient",
    "The mean over all samples is divided by the number of heads once more.",
    "loss = mean over all heads' samples",
    {"lte.reduce": lambda dz, heads, reduction: F["lte.reduce"](dz, heads, reduction) / heads},
)
mutant(
    "LTE-CHUNKS-INTERLEAVED",
    "LTE: chunks interleaved",
    "Head h gets samples h, h + heads, ...; it gets the h-th contiguous part.",
    "x.reshape(heads, -1, i)[head]",
    {"lte.chunks": lambda a, heads: [a[h::heads] for h in range(heads)]},
)
mutant(
    "LTE-CHUNKS-REVERSED",
    "LTE: chunks in reverse order",
    "The first head gets the last chunk.",
    "x.reshape(heads, -1, i)[head]",
    {"lte.chunks": lambda a, heads: np.split(a, heads)[::-1]},
)
mutant(
    "LTE-MERGE-LATE",
    "LTE: merges one step late",
    "Steps are counted from 0, so the merge comes after steps T + 1, 2 T + 1, ...",
    "merge after every T-th step",
    {"lte.due": lambda t, every: t > 1 and (t - 1) % every == 0},
)
mutant(
    "LTE-MERGE-NEVER",
    "LTE: never merges",
    "The heads train apart; W stays what it was.",
    "merge after every T-th step",
    {"lte.due": lambda t, every: False},
)


def _always_wiped(slots: Any, t: int, o: Any) -> tuple[Any, int]:
    return [{} for _ in slots], 0


mutant(
    "LTE-STATE-WIPED",
    "LTE: optimizer state wiped at a merge",
    "Momenta (and AdamW's step count) begin anew at every merge; they are kept.",
    "optimizer_state = keep",
    {"lte.state": _always_wiped},
)
mutant(
    "LTE-STATE-KEPT",
    "LTE: optimizer state kept where a reset is asked for",
    "Momenta survive the merge.",
    "optimizer_state = reset",
    {"lte.state": lambda slots, t, o: (slots, t)},
)
mutant(
    "LTE-COUNT-WIPED",
    "LTE: AdamW's step count begun anew at a merge",
    "exp_avg and exp_avg_sq are kept, and corrected as if they had just begun.",
    "t is kept with exp_avg and exp_avg_sq",
    {"lte.state": lambda slots, t, o: (F["lte.state"](slots, t, o)[0], 0)},
)
mutant(
    "LTE-COUNT-KEPT",
    "LTE: AdamW's step count kept where a merge begins the state anew",
    "exp_avg and exp_avg_sq are 0 again, and corrected as if they were old.",
    "t = 0 with exp_avg = exp_avg_sq = 0",
    {"lte.state": lambda slots, t, o: (F["lte.state"](slots, t, o)[0], t)},
)
mutant(
    "LTE-REPLICA-FIRST",
    "LTE: the first head's replica for all",
    "A layer without LoRA is copied from the first head at a merge; it is the heads' mean.",
    "W = mean(W_copies)",
    {"lte.replica": lambda copies: copies[0]},
)
mutant(
    "LTE-BIAS-UNMERGED",
    "LTE: branch biases left out",
    "scale (B bA + bB) is neither added to a head's bias nor merged.",
    "delta_b = scale * (B bA + bB)",
    {"lte.shift": lambda p, scale: 0.0 * F["lte.shift"](p, scale)},
)
mutant(
    "LTE-BIAS-WITHOUT-B",
    "LTE: bA merged without B",
    "The branch's bias is taken as scale bB; B bA is left out.",
    "delta_b = scale * (B bA + bB)",
    {"lte.shift": lambda p, scale: scale * p["bB"] if "bB" in p else 0.0},
)
mutant(
    "LTE-MSE-SUMMED",
    "LTE: squared error summed over the outputs",
    "The mean is over samples alone; it is over all entries.",
    "loss = ((z - y) ** 2).mean()",
    {"lte.mse": lambda z, y: 2 * (z - y) / len(y)},
)
mutant(
    "LTE-MHLORA-OTHER",
    "mhlora: sum for mean, or mean for sum",
    "The branches are summed where 1 / heads is asked for, or the other way round.",
    "y = W x + scale / heads * sum(B A x)",
    {
        "lte.mhlora": lambda deltas, scaling: F["lte.mhlora"](
            deltas, "sum" if scaling == "mean" else "mean"
        )
    },
)
