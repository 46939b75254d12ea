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
    "after the merge: nothing; B = 0 (and bB = 0); B = 0 and A redrawn (and bA = bB = 0). A reset "
    "also forgets what was merged",
    ("none", "B", "AB"),
)
_FACTORS = (
    "factors",
    "mapping",
    'all heads\' LoRA factors: "0.A" (heads, r, i), "0.B" (heads, o, r), and with a LoRA bias '
    '"0.bA" (heads, r), "0.bB" (heads, o), for the linear named "0" (an attention\'s "0.q"), and '
    "so on",
    "",
)
_WEIGHTS = (
    "weights",
    "mapping",
    'the shared "0.W" (o, i), "0.b" (o,), and so on, of every linear; of other layers their own',
    "",
)

FORWARD: tuple[Any, ...] = (
    "lte.forward",
    "every head's outputs with a shared weight: W x + b + branch(factors) - branch(merged)",
    (
        (
            "x",
            "(heads, batch, i); mhlora: (batch, i)",
            "inputs, each head's own samples, each as the first layer takes it",
            "",
        ),
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

_INPUTS = (
    (
        "x",
        "(steps, batch, i)",
        "inputs of each step, all heads' together: each sample as the first layer takes it",
        "",
    ),
    ("y", "(steps, batch, C)", "one-hot rows, or real rows for mse", ""),
    _WEIGHTS,
    _FACTORS,
    (
        "redraws",
        "mapping",
        'for each linear with LoRA "0.A" (merges, heads, r, i): A after each merge, those that no '
        "reset follows counted too",
        "reset='AB'",
    ),
    (
        "p",
        "(n,)",
        "prior variances of every head, packed as theta: where its filter begins, and begins anew",
        "optimizer='loko'",
    ),
    (
        "evaluation",
        "(samples, i)",
        "inputs that the main network is run on after every step",
        "where it is asked for",
    ),
)

_CHOICES: tuple[Any, ...] = (
    _HEADS,
    _MODE,
    _SCALING,
    (
        "realisation",
        "shared",
        "shared: one W and the factors last merged; copies: a weight copy a head, W - delta after "
        "a merge, W at the start and after a reset. In exact arithmetic both are one",
        ("shared", "copies"),
    ),
    ("merge_every", 8, "a merge after steps T, 2 T, ...", ()),
    (
        "merge_at",
        [],
        "the steps, counted from 1, after which a merge comes, in place of merge_every; [] is none "
        "given",
        (),
    ),
    _RESET,
    (
        "reset_at",
        [],
        "the steps, counted from 1, of those merges that a reset follows, in place of all; [] is "
        "none given",
        (),
    ),
    (
        "optimizer_state",
        "keep",
        "keep: momenta, p, R survive a merge; reset: a merge begins them anew (and the step count)",
        ("keep", "reset"),
    ),
    (
        "replicas",
        "train",
        "layers without LoRA. train: a copy of each array a head, averaged at a merge; frozen: "
        "as they are given",
        ("train", "frozen"),
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
        "all: the mean over all heads' losses is descended; own: each head its own mean. LoKO "
        "descends no loss: nothing is divided there",
        ("all", "own"),
    ),
    (
        "loss",
        "cross_entropy",
        "mean over samples of the cross-entropy, or mse: mean of (z - y)^2 over all entries",
        ("cross_entropy", "mse"),
    ),
    (
        "optimizer",
        "adamw",
        "in each head: as optimizer.*, or loko, as loko.run with covariance diagonal, y - yhat and "
        "the Jacobian being the head's own; in mhlora each head filters the common y - yhat with "
        "its own columns of the Jacobian, the other heads held where they were",
        ("adamw", "adagrad", "sgd", "loko"),
    ),
)

_DESCENT: tuple[Any, ...] = (
    ("lr", 1e-3, "learning rate", ()),
    ("rates", [], "the learning rate of each step, in place of lr; [] is none given", ()),
    ("momentum", 0.0, "sgd", ()),
    ("dampening", 0.0, "sgd", ()),
    ("nesterov", False, "sgd", ()),
    ("lr_decay", 0.0, "adagrad, counted from where its state was begun", ()),
    ("initial_accumulator_value", 0.0, "adagrad", ()),
    ("beta1", 0.9, "adamw", ()),
    ("beta2", 0.999, "adamw", ()),
    ("eps", 1e-8, "adamw, adagrad", ()),
    ("weight_decay", 0.0, "adamw: decoupled; others: added to the gradient", ()),
)

_LOKO: tuple[Any, ...] = (
    (
        "observation",
        "glm",
        "loko: gaussian goes with loss mse, the others with cross_entropy",
        ("glm", "softmax", "logits", "gaussian"),
    ),
    (
        "noise",
        "glm",
        "loko: estimator of R, as in loko.run",
        ("fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph", "glm"),
    ),
    ("timing", "before", "loko: as in loko.run", ("before", "after")),
    ("beta", 0.95, "loko: weight of the past in R's average", ()),
    ("r0", 1.0, "loko: R begins, and begins anew, as r0 I", ()),
    ("diagonal", "decoupled", "loko: as in loko.run", ("decoupled", "variational")),
    ("lam", 1.0, "loko: forgetting, p_pred = p / lam + q", ()),
    ("q", 0.0, "loko: process noise", ()),
    ("center", False, "loko, for logits: centre H over each sample's classes", ()),
    (
        "filter_merge",
        "keep",
        "loko: p at a merge that keeps the state. keep: nothing; shrink: p / heads; prior: at a "
        "reset the entries that it sets anew get their prior variances. R stays",
        ("keep", "shrink", "prior"),
    ),
)


def _slots(suffix: str, when: str) -> tuple[tuple[str, ...], ...]:
    named = [("momentum", "sgd", 1), ("sum", "adagrad", 2), ("exp_avg", "adamw", 3)]
    named.append(("exp_avg_sq", "adamw", 3))
    return tuple(
        (f"{name}{suffix}", "(steps, heads, n)", f"{who}'s slot {when}", f"OPT-{k}", "gradient")
        for name, who, k in named
    )


_NOT_MERGED = "; where none is due, as after the step"
_OUTPUTS = (
    (
        "z",
        "(steps, heads, batch, C)",
        "outputs before the step (mhlora: the same for every head)",
        "LTE-2 LTE-3 LTE-4",
        "x weights factors",
    ),
    ("loss", "(steps, heads)", "each head's own mean loss before the step", "LTE-8", "z y"),
    (
        "Z",
        "(steps, heads, m, n)",
        "loko: dz/dtheta before the step, row b*C + j, columns as theta; at the full A and B",
        "LTE-3 LTE-10",
        "x weights factors",
    ),
    (
        "gradient",
        "(steps, heads, n)",
        "gradient of what the head descends, packed as theta; at the full A and B; not with loko",
        "LTE-3 LTE-8",
        "z y factors",
    ),
    *_slots("_step", "after the step"),
    (
        "theta_step",
        "(steps, heads, n)",
        "after the step, before a merge, packed as theta; not for mhlora, nor the others on _step",
        "LTE-1",
        "gradient",
    ),
    ("p_step", "(steps, heads, n)", "loko: variances after the step", "LTE-10", "Z z y p"),
    ("R_step", "(steps, heads, m, m)", "loko: R after the step (not glm)", "LTE-10", "Z z y"),
    (
        "W",
        "(steps, w)",
        "after step and merge: the shared weights in the order given, each row-major; that is the "
        "spec's: of a linear W, b, of a norm g, b, of tables token, position, type",
        "LTE-5 LTE-7",
        "theta_step",
    ),
    *_slots("", "after step and merge"),
    (
        "theta_merge",
        "(steps, heads, n)",
        "with a reset: after the merge, before the reset" + _NOT_MERGED,
        "LTE-7",
        "theta_step W",
    ),
    (
        "p_merge",
        "(steps, heads, n)",
        "loko with a reset: after the merge, before the reset" + _NOT_MERGED,
        "LTE-10",
        "p_step",
    ),
    (
        "merged_merge",
        "(steps, heads, f)",
        "shared, with a reset: merged before the reset" + _NOT_MERGED,
        "LTE-5",
        "theta_step",
    ),
    (
        "copies_merge",
        "(steps, heads, c)",
        "copies, with a reset: copies before the reset" + _NOT_MERGED,
        "LTE-4",
        "W theta_step",
    ),
    (
        "theta",
        "(steps, heads, n)",
        "after step, merge, reset: layer by layer; of a linear with LoRA A, B, bA, bB, each "
        "row-major; of one without W, b, a copy a head, averaged at a merge (of a norm g, b; of "
        "tables token, position, type; with replicas frozen none of these)",
        "LTE-1 LTE-6 LTE-7",
        "gradient Z",
    ),
    ("p", "(steps, heads, n)", "loko: after step, merge, reset", "LTE-10", "p_step"),
    ("R", "(steps, heads, m, m)", "loko: after step and merge (not glm)", "LTE-10", "R_step"),
    (
        "merged",
        "(steps, heads, f)",
        "shared: after step, merge, reset: the factors last merged, packed as theta without its "
        "replicas; all 0 before the first merge and after a reset",
        "LTE-3 LTE-5 LTE-6",
        "theta_step",
    ),
    (
        "copies",
        "(steps, heads, c)",
        "copies: after step, merge, reset: linear by linear with LoRA the head's own W, then b "
        "where the branch has biases",
        "LTE-4 LTE-6",
        "W theta_step",
    ),
    (
        "seen",
        "(steps, heads, s)",
        "after step, merge and reset: the weight that each head sees, W + delta - delta' (of a "
        "linear without LoRA its copy; with replicas frozen none of it), linear by linear, each "
        "row-major; not for mhlora",
        "LTE-3 LTE-4 LTE-6",
        "W theta",
    ),
    (
        "z_main",
        "(steps, samples, C)",
        "with evaluation: outputs of the network of W, after step and merge; not for mhlora",
        "LTE-5 LTE-13",
        "evaluation W",
    ),
    (
        "z_now",
        "(steps, samples, C)",
        "with evaluation, after step, merge and reset: outputs of the network that a merge now "
        "would give: W + mean over heads of (delta - delta'), means of the copies of layers "
        "without LoRA; for mhlora the one network's",
        "LTE-2 LTE-13",
        "evaluation W theta",
    ),
)

RUN: tuple[Any, ...] = (
    "lte.run",
    "LTE on recorded data: a step for each leading entry of x, y, merges and resets when due",
    _INPUTS,
    (*_CHOICES, *_DESCENT, *_LOKO),
    _OUTPUTS,
    lte_oracle.run,
    lte_plain.lte_run,
    True,
)

LTE = (FORWARD, MERGE, RUN)
"""Every entry in order; ``lte.forward`` and ``lte.run`` also take the option ``spec``."""
