"""The catalogue's entry of a run of LTE: steps, merges and resets on recorded data."""

from __future__ import annotations

from dataclasses import replace

from loko_ref.conformance.catalogue.entry import Operation, Output, gives, option, takes
from loko_ref.conformance.catalogue.loko import SOLVE
from loko_ref.conformance.catalogue.lte import (
    FACTORS,
    HEADS,
    MODE,
    RESET,
    SCALING,
    SPEC,
    WEIGHTS,
    narrow,
)
from loko_ref.conformance.oracle import lte as lte_oracle
from loko_ref.kalman.diagonal import DIAGONALS
from loko_ref.kalman.noise import ESTIMATORS, TIMINGS
from loko_ref.kalman.observation import OBSERVATIONS
from loko_ref.lte.config import CHOICES, OPTIMIZERS
from loko_ref.textbook import lte as table
from loko_ref.textbook.quantities import origins

_INPUTS = (
    takes(
        "x",
        "(steps, batch, i)",
        "inputs of each step, all heads' together: each sample as the first layer takes it",
    ),
    takes("y", "(steps, batch, C)", "one-hot rows, or real rows for mse"),
    WEIGHTS,
    FACTORS,
    takes(
        "redraws",
        "mapping",
        'for each linear with LoRA "0.A" (merges, heads, r, i): A after each merge, those that no '
        "reset follows counted too",
        "reset='AB'",
    ),
    takes(
        "p",
        "(n,)",
        "prior variances of every head, packed as theta: where its filter begins, and begins anew",
        "optimizer='loko'",
    ),
    takes(
        "evaluation",
        "(samples, i)",
        "inputs that the main network is run on after every step",
        "where it is asked for",
    ),
)

_CHOICES = (
    HEADS,
    MODE,
    SCALING,
    option(
        "realisation",
        "shared",
        "shared: one W and the factors last merged; copies: a weight copy a head, W - delta after "
        "a merge, W at the start and after a reset. In exact arithmetic both are one",
        CHOICES["realisation"],
    ),
    option("merge_every", 8, "a merge after steps T, 2 T, ..."),
    option(
        "merge_at",
        [],
        "the steps, counted from 1, after which a merge comes, in place of merge_every; [] is none "
        "given",
    ),
    RESET,
    option(
        "reset_at",
        [],
        "the steps, counted from 1, of those merges that a reset follows, in place of all; [] is "
        "none given",
    ),
    option(
        "optimizer_state",
        "keep",
        "keep: momenta, p, R survive a merge; reset: a merge begins them anew (and the step count)",
        CHOICES["optimizer_state"],
    ),
    option(
        "replicas",
        "train",
        "layers without LoRA. train: a copy of each array a head, averaged at a merge; frozen: "
        "as they are given",
        CHOICES["replicas"],
    ),
    option(
        "data",
        "chunks",
        "chunks: head h gets the h-th contiguous part of the batch; replicated: all of it",
        CHOICES["data"],
    ),
    option(
        "reduction",
        "all",
        "all: the mean over all heads' losses is descended; own: each head its own mean. LoKO "
        "descends no loss: nothing is divided there",
        CHOICES["reduction"],
    ),
    option(
        "loss",
        "cross_entropy",
        "mean over samples of the cross-entropy, or mse: mean of (z - y)^2 over all entries",
        CHOICES["loss"],
    ),
    option(
        "optimizer",
        "adamw",
        "in each head: as optimizer.*, or loko, as loko.run with covariance diagonal, y - yhat and "
        "the Jacobian being the head's own; in mhlora each head filters the common y - yhat with "
        "its own columns of the Jacobian, the other heads held where they were",
        tuple(OPTIMIZERS),
    ),
)

_DESCENT = (
    option("lr", 1e-3, "learning rate"),
    option("rates", [], "the learning rate of each step, in place of lr; [] is none given"),
    option("momentum", 0.0, "sgd"),
    option("dampening", 0.0, "sgd"),
    option("nesterov", False, "sgd"),
    option("lr_decay", 0.0, "adagrad, counted from where its state was begun"),
    option("initial_accumulator_value", 0.0, "adagrad"),
    option("beta1", 0.9, "adamw"),
    option("beta2", 0.999, "adamw"),
    option("eps", 1e-8, "adamw, adagrad"),
    option("weight_decay", 0.0, "adamw: decoupled; others: added to the gradient"),
)

_LOKO = (
    option(
        "observation",
        "glm",
        "loko: gaussian goes with loss mse, the others with cross_entropy",
        OBSERVATIONS,
    ),
    option("noise", "glm", "loko: estimator of R, as in loko.run", ESTIMATORS),
    option("timing", "before", "loko: as in loko.run", TIMINGS),
    option("beta", 0.95, "loko: weight of the past in R's average"),
    option("r0", 1.0, "loko: R begins, and begins anew, as r0 I"),
    option("diagonal", "decoupled", "loko: as in loko.run", DIAGONALS),
    option("lam", 1.0, "loko: forgetting, p_pred = p / lam + q"),
    option("q", 0.0, "loko: process noise"),
    option("center", False, "loko, for logits: centre H over each sample's classes"),
    replace(SOLVE, text="loko, for glm: as in loko.run"),
    option(
        "filter_merge",
        "keep",
        "loko: p at a merge that keeps the state. keep: nothing; shrink: p / heads; prior: at a "
        "reset the entries that it sets anew get their prior variances. R stays",
        CHOICES["filter_merge"],
    ),
)


def _out(name: str, shape: str, formula: str) -> Output:
    """Write an output; labels and origins are those of the table of quantities."""
    q = next(q for q in table.RUN if q.name == name)
    start = {"last.W": "weights", "last.theta": "factors", "last.p": "p"}  # the first step's
    found = dict.fromkeys(start.get(k, k) for k in origins(name, table.RUN))
    feeds = [k for k in found if not k.startswith("last.")]
    return gives(name, shape, formula, " ".join(q.labels), " ".join(feeds))


def _slots(suffix: str, when: str) -> tuple[Output, ...]:
    named = (("momentum", "sgd"), ("sum", "adagrad"), ("exp_avg", "adamw"), ("exp_avg_sq", "adamw"))
    return tuple(
        _out(f"{name}{suffix}", "(steps, heads, n)", f"{who}'s slot {when}") for name, who in named
    )


_NOT_MERGED = "; where none is due, as after the step"
_OUTPUTS = (
    _out(
        "z", "(steps, heads, batch, C)", "outputs before the step (mhlora: the same for every head)"
    ),
    _out("loss", "(steps, heads)", "each head's own mean loss before the step"),
    _out(
        "Z",
        "(steps, heads, m, n)",
        "loko: dz/dtheta before the step, row b*C + j, columns as theta; at the full A and B",
    ),
    _out(
        "gradient",
        "(steps, heads, n)",
        "gradient of what the head descends, packed as theta; at the full A and B; not with loko",
    ),
    *_slots("_step", "after the step"),
    _out(
        "theta_step",
        "(steps, heads, n)",
        "after the step, before a merge, packed as theta; not for mhlora, nor the others on _step",
    ),
    _out("p_step", "(steps, heads, n)", "loko: variances after the step"),
    _out("R_step", "(steps, heads, m, m)", "loko: R after the step (not glm)"),
    _out(
        "W",
        "(steps, w)",
        "after step and merge: the shared weights in the order given, each row-major; that is the "
        "spec's: of a linear W, b, of a norm g, b, of tables token, position, type",
    ),
    *_slots("", "after step and merge"),
    _out(
        "theta_merge",
        "(steps, heads, n)",
        "with a reset: after the merge, before the reset" + _NOT_MERGED,
    ),
    _out(
        "p_merge",
        "(steps, heads, n)",
        "loko with a reset: after the merge, before the reset" + _NOT_MERGED,
    ),
    _out(
        "merged_merge",
        "(steps, heads, f)",
        "shared, with a reset: merged before the reset" + _NOT_MERGED,
    ),
    _out(
        "copies_merge",
        "(steps, heads, c)",
        "copies, with a reset: copies before the reset" + _NOT_MERGED,
    ),
    _out(
        "theta",
        "(steps, heads, n)",
        "after step, merge, reset: layer by layer; of a linear with LoRA A, B, bA, bB, each "
        "row-major; of one without W, b, a copy a head, averaged at a merge (of a norm g, b; of "
        "tables token, position, type; with replicas frozen none of these)",
    ),
    _out("p", "(steps, heads, n)", "loko: after step, merge, reset"),
    _out("R", "(steps, heads, m, m)", "loko: after step and merge (not glm)"),
    _out(
        "merged",
        "(steps, heads, f)",
        "shared: after step, merge, reset: the factors last merged, packed as theta without its "
        "replicas; all 0 before the first merge and after a reset",
    ),
    _out(
        "copies",
        "(steps, heads, c)",
        "copies: after step, merge, reset: linear by linear with LoRA the head's own W, then b "
        "where the branch has biases",
    ),
    _out(
        "seen",
        "(steps, heads, s)",
        "after step, merge and reset: the weight that each head sees, W + delta - delta' (of a "
        "linear without LoRA its copy; with replicas frozen none of it), linear by linear, each "
        "row-major; not for mhlora",
    ),
    _out(
        "z_main",
        "(steps, samples, C)",
        "with evaluation: outputs of the network of W, after step and merge; not for mhlora",
    ),
    _out(
        "z_now",
        "(steps, samples, C)",
        "with evaluation, after step, merge and reset: outputs of the network that a merge now "
        "would give: W + mean over heads of (delta - delta'), means of the copies of layers "
        "without LoRA; for mhlora the one network's",
    ),
    _out(
        "z_first",
        "(steps, samples, C)",
        "with evaluation, where layers without LoRA are trained, after step, merge and reset: "
        "outputs of the network of W whose layers without LoRA are the first head's copies, as the "
        "authors' code evaluates; not for mhlora",
    ),
)

RUN = Operation(
    name="lte.run",
    text="LTE on recorded data: a step for each leading entry of x, y, merges and resets when due",
    inputs=_INPUTS,
    options=(SPEC, *_CHOICES, *_DESCENT, *_LOKO),
    outputs=_OUTPUTS,
    oracle=lte_oracle.run,
    plain=table.lte_run,
    stepwise=True,
    narrow=lambda name, o: narrow(next(q.labels for q in table.RUN if q.name == name), o),
)
"""The entry."""
