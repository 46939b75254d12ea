"""Mistakes in LTE's runs: what is remembered, copies, schedules, LoKO in the heads, evaluation.

Shapes as in ``textbook.lte``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.lte import LTE_FORMULAS

__all__: list[str] = []

F = LTE_FORMULAS

# ------------------------------------------------------------- what is remembered, copies, resets

mutant(
    "LTE-REMEMBERS-FIRST",
    "LTE: the factors last merged not updated",
    "A_merged and B_merged are set at the first merge and stay: later merges add again what the "
    "heads learned since then.",
    "A_merged, B_merged = A, B at every merge",
    {"lte.remembered": lambda p, old, reset: None if reset else p if old is None else old},
)
mutant(
    "LTE-COPY-WHOLE",
    "LTE: weight copies that keep what was merged",
    "A head's copy becomes W: with its factors, which a merge leaves, it counts its part twice.",
    "W_copy = W - scale * B A",
    {"lte.copied": lambda W, now: W},
)
mutant(
    "LTE-COPY-ADDED",
    "LTE: delta added to the weight copy",
    "A head's copy becomes W + scale B A.",
    "W_copy = W - scale * B A",
    {"lte.copied": lambda W, now: W + now},
)
mutant(
    "LTE-RESET-B-KEPT",
    "LTE: B kept at a reset",
    "What was merged is forgotten, but the factors stay: it is merged again.",
    "B = 0",
    {"lte.zeroed": lambda a, part: a},
)
mutant(
    "LTE-RESET-A-FOR-B",
    "LTE: A set to 0 at a reset in place of B",
    "The branch is 0 after the merge, but the factors have changed places: B is kept.",
    "B = 0",
    {
        "lte.zeroed": lambda a, part: a if part == "B" else F["lte.zeroed"](a, part),
        "lte.left": lambda a, part: 0 * a if part == "A" else a,
        "lte.redrawn": lambda A, drawn, merge, resets: 0 * A,
    },
)
mutant(
    "LTE-RESET-BOTH",
    "LTE: A and B set to 0 at a reset",
    "With both factors 0 every gradient of the branch is 0: it never learns again.",
    "B = 0, A kept or redrawn",
    {
        "lte.left": lambda a, part: 0 * a if part == "A" else a,
        "lte.redrawn": lambda A, drawn, merge, resets: 0 * A,
    },
)
mutant(
    "LTE-RESET-BIAS-A-KEPT",
    "LTE: bA kept at a reset of A and B",
    "A is redrawn and B is 0, but the branch keeps the bias bA that went with the old A.",
    "bA = 0",
    {"lte.zeroed": lambda a, part: a if part == "bA" else F["lte.zeroed"](a, part)},
)
mutant(
    "LTE-RESET-BIAS-B-KEPT",
    "LTE: bB kept at a reset",
    "B is 0, but scale bB, which was merged into b, stays in the branch: it is merged again.",
    "bB = 0",
    {"lte.zeroed": lambda a, part: a if part == "bB" else F["lte.zeroed"](a, part)},
)
mutant(
    "LTE-RESET-A-KEPT",
    "LTE: A kept where it is to be redrawn",
    "Every interval explores the same directions.",
    "A = redraws[merge]",
    {"lte.redrawn": lambda A, drawn, merge, resets: A},
)
mutant(
    "LTE-REDRAW-SAME",
    "LTE: the same redraw at every merge",
    "The generator is seeded anew: each merge draws the first A again.",
    "A = redraws[merge]",
    {"lte.redrawn": lambda A, drawn, merge, resets: drawn[0]},
)
mutant(
    "LTE-REDRAW-BY-RESETS",
    "LTE: redraws counted by resets",
    "The k-th reset takes the k-th redraw; where some merges have no reset, it is the redraw of "
    "another merge.",
    "A = redraws[merge]",
    {"lte.redrawn": lambda A, drawn, merge, resets: drawn[resets - 1]},
)
mutant(
    "LTE-RESET-EVERY",
    "LTE: a reset at every merge",
    "reset_at names the merges that a reset follows; every merge resets.",
    "reset after the merge if t in reset_at",
    {"lte.reset_due": lambda t, merge, named: True},
)
mutant(
    "LTE-RESET-LATE",
    "LTE: resets one step late",
    "The steps in reset_at are counted from 0: a merge at the step after a named one resets.",
    "reset after the merge if t in reset_at, t = 1, 2, ...",
    {"lte.reset_due": lambda t, merge, named: not named or t - 1 in named},
)
mutant(
    "LTE-RESET-BY-MERGES",
    "LTE: reset_at taken for numbers of merges",
    "The k-th merge resets if k is in reset_at, which names steps.",
    "reset after the merge if t in reset_at",
    {"lte.reset_due": lambda t, merge, named: not named or merge in named},
)
mutant(
    "LTE-RATE-CONSTANT",
    "LTE: the schedule ignored",
    "Every step is taken at lr.",
    "lr = rates[t - 1]",
    {"lte.rate": lambda o, at: o["lr"]},
)
mutant(
    "LTE-RATE-LATE",
    "LTE: the schedule one step late",
    "Step t is taken at the rate of step t - 1, the first at its own.",
    "lr = rates[t - 1]",
    {"lte.rate": lambda o, at: F["lte.rate"](o, max(at - 1, 1))},
)

# ------------------------------------------------------------------------------ LoKO in the heads


def _without(*names: str) -> Any:
    """Begin these anew at every merge."""
    return lambda slots, t, o: F["lte.state"](
        [{k: a for k, a in s.items() if k not in names} for s in slots], t, o
    )


def _keeping(name: str) -> Any:
    """Keep this where a merge begins the state anew."""

    def state(slots: Any, t: int, o: Any) -> Any:
        fresh, t = F["lte.state"](slots, t, o)
        return [
            {**new, name: old[name]} if name in old else new
            for new, old in zip(fresh, slots, strict=True)
        ], t

    return state


def _by_root(p: Any) -> list[Any]:
    return [row / len(p) ** 0.5 for row in p]


mutant(
    "LTE-LOKO-P-RESET",
    "LTE: p begun anew at every merge",
    "A merge sets LoKO's variances to their prior, although the state is kept.",
    "p is kept at a merge (filter_merge = keep)",
    {"lte.state": _without("p")},
)
mutant(
    "LTE-LOKO-P-KEPT",
    "LTE: p kept where a merge begins the state anew",
    "Only R goes back to where it began.",
    "p = p0; R = r0 * I",
    {"lte.state": _keeping("p")},
)
mutant(
    "LTE-LOKO-R-RESET",
    "LTE: R begun anew at every merge",
    "The noise estimate goes back to r0 I, although the state is kept.",
    "R is kept at a merge",
    {"lte.state": _without("R")},
)
mutant(
    "LTE-LOKO-R-KEPT",
    "LTE: R kept where a merge begins the state anew",
    "Only p goes back to where it began.",
    "p = p0; R = r0 * I",
    {"lte.state": _keeping("R")},
)
mutant(
    "LTE-LOKO-ONE-FILTER",
    "LTE: one filter for all heads",
    "p and R are passed from head to head within a step: each head's update is felt by the next.",
    "p[head], R[head]: one of each for every head",
    {"lte.filter_of": lambda head: 0},
)
mutant(
    "LTE-LOKO-R-OTHER",
    "LTE: another head's R",
    "A head filters with the noise estimate of the head before it.",
    "S = H p H' + R[head]",
    {"lte.R_of": lambda R, head: R[head - 1]},
)
mutant(
    "LTE-LOKO-E-REDUCED",
    "LTE: the innovation divided by the number of heads",
    "1 / heads of the mean over all heads' losses is taken for the filter too; its innovation is "
    "y - yhat.",
    "e = y - yhat",
    {"lte.innovation": lambda e, heads: e / heads},
)
mutant(
    "LTE-LOKO-SHRINK-IGNORED",
    "LTE: shrink ignored",
    "p stays as it is at a merge although it is to be divided by the number of heads.",
    "p = p / heads",
    {"lte.p_merged": lambda p, how: list(p)},
)
mutant(
    "LTE-LOKO-SHRINK-ROOT",
    "LTE: p shrunk by the root",
    "p is divided by sqrt(heads): it is a variance, not a standard deviation.",
    "p = p / heads",
    {"lte.p_merged": lambda p, how: F["lte.p_merged"](p, how) if how != "shrink" else _by_root(p)},
)
mutant(
    "LTE-LOKO-SHRUNK",
    "LTE: p shrunk unasked",
    "Every merge divides p by the number of heads.",
    "p is kept at a merge (filter_merge = keep)",
    {"lte.p_merged": lambda p, how: F["lte.p_merged"](p, "shrink")},
)
mutant(
    "LTE-LOKO-P-AVERAGED",
    "LTE: p averaged over the heads",
    "A merge gives every head the mean of all heads' variances: W is averaged, p is each head's.",
    "p[head] is kept at a merge",
    {"lte.p_merged": lambda p, how: [sum(F["lte.p_merged"](p, how)) / len(p)] * len(p)},
)
mutant(
    "LTE-LOKO-PRIOR-IGNORED",
    "LTE: p kept where reset entries get their prior",
    "B (and A) are set anew, and keep the small variances of what they were.",
    "p = where(reset, p0, p)",
    {"lte.p_reset": lambda p, prior, hit, how: p},
)
mutant(
    "LTE-LOKO-PRIOR-ALL",
    "LTE: a reset gives all entries their prior",
    "With filter_merge = prior those entries alone that the reset sets anew get theirs.",
    "p = where(reset, p0, p)",
    {"lte.p_reset": lambda p, prior, hit, how: prior if how == "prior" else p},
)
mutant(
    "LTE-LOKO-PRIOR-UNASKED",
    "LTE: reset entries get their prior unasked",
    "A reset touches p although filter_merge is not prior.",
    "p is kept at a reset",
    {"lte.p_reset": lambda p, prior, hit, how: np.where(hit, prior, p)},
)

# ------------------------------------------------------------------------------------ evaluation

mutant(
    "LTE-EVAL-MERGED-ALONE",
    "LTE: evaluated without the unmerged factors",
    "Between merges the network of W alone is evaluated where the heads' mean is asked for.",
    "W + mean(delta - delta_merged)",
    {"lte.now": lambda W, seen, deltas: W},
)
mutant(
    "LTE-EVAL-SUM",
    "LTE: evaluated with the sum of the heads",
    "What the heads have learned since the last merge is added up; it is to be averaged.",
    "W + mean(delta - delta_merged)",
    {"lte.now": lambda W, seen, deltas: W + sum(a - W for a in seen)},
)
mutant(
    "LTE-EVAL-UNCORRECTED",
    "LTE: evaluated with what was merged counted twice",
    "The mean of the whole deltas is added to W, which holds those of the last merge.",
    "W + mean(delta - delta_merged)",
    {"lte.now": lambda W, seen, deltas: W + sum(deltas) / len(deltas)},
)
mutant(
    "LTE-EVAL-FIRST-HEAD",
    "LTE: the first head evaluated",
    "One head's network is taken for the main one.",
    "W + mean(delta - delta_merged)",
    {"lte.now": lambda W, seen, deltas: seen[0]},
)
mutant(
    "LTE-EVAL-COPY-MEAN",
    "LTE: evaluated with the mean of the copies",
    "Layers without LoRA are averaged where the first head's copy is asked for.",
    "replicas[0]",
    {"lte.copy": lambda copies: sum(copies) / len(copies)},
)
mutant(
    "LTE-EVAL-COPY-LAST",
    "LTE: evaluated with the last head's copy",
    "Layers without LoRA are those of the last head.",
    "replicas[0]",
    {"lte.copy": lambda copies: copies[-1]},
)
mutant(
    "LTE-EVAL-UNMERGED",
    "LTE: the main network evaluated with unmerged factors",
    "Where W as last merged is asked for, what the heads learned since is added.",
    "y = W x + b",
    {"lte.main": lambda W, before, now: now},
)
mutant(
    "LTE-EVAL-STALE",
    "LTE: evaluated before the merge",
    "At a step with a merge the main network is evaluated with the weights that it had before.",
    "merge, then evaluate",
    {"lte.main": lambda W, before, now: before},
)
