"""LTE's entries of the catalogue, as data: :mod:`loko_ref.conformance.operations` reads them.

Each entry: (name, text, inputs, options, outputs, oracle, plain, stepwise), with inputs (name,
shape, text, optional), options (name, default, text, choices), outputs (name, shape, formula,
labels, feeds).
"""

from __future__ import annotations

from typing import Any

from loko_ref.conformance import lte_oracle, lte_plain

__all__ = ["LTE"]

_HEADS = ("heads", None, "number of heads", ())
_MODE = (
    "mode",
    "lte",
    "lte: each head on its own samples, with a shared weight; mhlora: one network with all heads' "
    "branches, which never merges",
    ("lte", "mhlora"),
)
_SCALING = (
    "scaling",
    "mean",
    "of mhlora: each branch times alpha/r/heads (mean) or alpha/r (sum)",
    ("mean", "sum"),
)
_RESET = (
    "reset",
    "none",
    "after the merge: nothing; B = 0; B = 0 and A redrawn. A reset also forgets what was merged",
    ("none", "B", "AB"),
)
_FACTORS = (
    "factors",
    "mapping",
    'all heads\' LoRA factors: "0.A" (heads, r, i), "0.B" (heads, o, r), and with a LoRA bias '
    '"0.bA" (heads, r), "0.bB" (heads, o), for the linear named "0", and so on',
    "",
)
_WEIGHTS = (
    "weights",
    "mapping",
    'the shared "0.W" (o, i), "0.b" (o,), and so on, of every linear',
    "",
)

FORWARD: tuple[Any, ...] = (
    "lte.forward",
    "every head's outputs with a shared weight: W x + b + branch(factors) - branch(merged)",
    (
        ("x", "(heads, batch, i); mhlora: (batch, i)", "inputs, each head's own samples", ""),
        _WEIGHTS,
        _FACTORS,
        (
            "merged",
            "mapping",
            "the factors last merged, named as factors; absent before the first merge",
            "after a merge",
        ),
    ),
    (_HEADS, _MODE, _SCALING),
    (
        (
            "z",
            "(heads, batch, C); mhlora: (batch, C)",
            "the outputs; a head sees W + delta - delta', delta = (alpha/r) B A",
            "LTE-2 LTE-3",
            "x weights factors merged",
        ),
    ),
    lte_oracle.forward,
    lte_plain.lte_forward,
    False,
)

MERGE: tuple[Any, ...] = (
    "lte.merge",
    "merge the heads of one linear, with or without a reset",
    (
        ("W", "(o, i)", "the shared weight", ""),
        ("A", "(heads, r, i)", "down factors", ""),
        ("B", "(heads, o, r)", "up factors", ""),
        ("A_merged", "(heads, r, i)", "down factors as last merged", ""),
        ("B_merged", "(heads, o, r)", "up factors as last merged; 0 before the first merge", ""),
    ),
    (("alpha", None, "LoRA's alpha; scale = alpha / r", ()), (*_RESET[:3], ("none", "B"))),
    (
        (
            "W",
            "(o, i)",
            "W + mean over heads of (delta - delta'), delta = (alpha/r) B A",
            "LTE-5",
            "W A B A_merged B_merged",
        ),
        (
            "seen",
            "(heads, o, i)",
            "the weight that each head sees after the merge (and reset): W + delta - delta'",
            "LTE-3 LTE-5 LTE-6",
            "W A B",
        ),
    ),
    lte_oracle.merge,
    lte_plain.lte_merge,
    False,
)

RUN: tuple[Any, ...] = (
    "lte.run",
    "LTE on recorded data: a step for each leading entry of x, y, merges and resets when due",
    (
        ("x", "(steps, batch, i)", "inputs of each step, all heads' together", ""),
        ("y", "(steps, batch, C)", "one-hot rows, or real rows for mse", ""),
        _WEIGHTS,
        _FACTORS,
        (
            "redraws",
            "mapping",
            'for each linear with LoRA "0.A" (merges, heads, r, i): A after each merge',
            "reset='AB'",
        ),
    ),
    (
        _HEADS,
        _MODE,
        _SCALING,
        ("merge_every", 8, "a merge after steps T, 2 T, ...", ()),
        _RESET,
        (
            "optimizer_state",
            "keep",
            "keep: momenta survive a merge; reset: a merge begins them anew (and the step count)",
            ("keep", "reset"),
        ),
        (
            "data",
            "chunks",
            "chunks: head h gets the h-th contiguous part of the batch; replicated: all of it",
            ("chunks", "replicated"),
        ),
        (
            "reduction",
            "all",
            "all: the mean over all heads' losses is descended; own: each head its own mean",
            ("all", "own"),
        ),
        (
            "loss",
            "cross_entropy",
            "mean over samples of the cross-entropy, or mse: mean of (z - y)^2 over all entries",
            ("cross_entropy", "mse"),
        ),
        ("optimizer", "adamw", "as optimizer.*, in each head", ("adamw", "adagrad", "sgd")),
        ("lr", 1e-3, "learning rate", ()),
        ("momentum", 0.0, "sgd", ()),
        ("beta1", 0.9, "adamw", ()),
        ("beta2", 0.999, "adamw", ()),
        ("eps", 1e-8, "adamw, adagrad", ()),
        ("weight_decay", 0.0, "adamw: decoupled; others: added to the gradient", ()),
    ),
    (
        (
            "z",
            "(steps, heads, batch, C)",
            "outputs before the step (mhlora: the same for every head)",
            "LTE-2 LTE-3",
            "x weights factors",
        ),
        ("loss", "(steps, heads)", "each head's own mean loss before the step", "LTE-8", "z y"),
        (
            "gradient",
            "(steps, heads, n)",
            "gradient of what the head descends, packed as theta; at the full A and B",
            "LTE-3 LTE-8",
            "z y factors",
        ),
        ("momentum", "(steps, heads, n)", "sgd's slot after step and merge", "OPT-1", "gradient"),
        ("sum", "(steps, heads, n)", "adagrad's slot after step and merge", "OPT-2", "gradient"),
        (
            "exp_avg",
            "(steps, heads, n)",
            "adamw's slot after step and merge",
            "OPT-3",
            "gradient",
        ),
        (
            "exp_avg_sq",
            "(steps, heads, n)",
            "adamw's slot after step and merge",
            "OPT-3",
            "gradient",
        ),
        (
            "theta",
            "(steps, heads, n)",
            "after step, merge, reset: linear by linear, A, B, bA, bB, each row-major; of a "
            "linear without LoRA W, b, a copy a head, averaged at a merge",
            "LTE-1 LTE-6 LTE-7",
            "gradient",
        ),
        (
            "W",
            "(steps, w)",
            "after step and merge: the shared weights in the order given, each row-major",
            "LTE-5 LTE-7",
            "theta",
        ),
        (
            "seen",
            "(steps, heads, w)",
            "after step, merge and reset: the weight that each head sees, W + delta - delta' "
            "(without LoRA its copy), linear by linear, each row-major; not for mhlora",
            "LTE-3 LTE-6",
            "W theta",
        ),
    ),
    lte_oracle.run,
    lte_plain.lte_run,
    True,
)

LTE = (FORWARD, MERGE, RUN)
"""Every entry in order; ``lte.forward`` and ``lte.run`` also take the option ``spec``."""
