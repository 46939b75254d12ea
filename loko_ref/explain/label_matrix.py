"""Where each label is computed, tested and mistaken: label x code x test x known mistake.

Code is what cites the label (of an example, what the index names); tests are those that its
``Check`` names; known mistakes are those that change one of its formulas. A label of which there is
none has the reason. Mistakes of precision change no formula and belong to no label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import loko_ref
from loko_ref.conformance.mistakes.registry import all_mutants
from loko_ref.explain.derivations import LABEL, derivations
from loko_ref.files.shipped import shipped

_FORMULAS = """
KAL-1 p_pred
KAL-2 S K pHt theta_post p.dense
DIAG-1 p.decoupled
DIAG-2 p.variational
DIAG-4 p.decoupled p.variational
KAL-9 U_pred W_pred P.precision Hw turned cut kept U.diagonal
KAL-10 U.blocks
OBS-1 yhat e H.gaussian
OBS-2 softmax J H.softmax K.softmax
OBS-3 H.logits
OBS-4 H.glm R.glm
OBS-6 K.glm
OBS-9 v theta_post.implicit
NOISE-1 R.fixed
NOISE-2 R.ema_innovation
NOISE-3 R.ema_innovation_hph
NOISE-4 R.ema_residual_hph residual
NOISE-5 timing carried covariance_seen covariance_residual R.standing R.kept
LAY-1 bias
LAY-2 branch branch_back jacobian_scale
LAY-3 branch shift_back
LAY-4 tanh_derivative
LAY-5 relu relu_derivative
LAY-6 gelu
LAY-7 softmax_back
LAY-9 outer total
LAY-10 stack
LAY-11 gelu_tanh
LORA-2 scale
LORA-3 W_post
LORA-4 order order.weights sites sites.weights flatten unflatten
LOKO-1 theta_post carried network.theta network.z network.Z
LOKO-2 e stack
LOKO-4 p.dense
OPT-1 sgd.momentum sgd.theta sgd.decay lte.rate
OPT-2 adagrad.theta adagrad.decay adagrad.sum
OPT-3 adamw.gradient adamw.decay adamw.exp_avg_sq adamw.hats adamw.theta
LTE-1 lte.chunks
LTE-2 lte.mhlora
LTE-3 lte.seen lte.at
LTE-4 lte.copied lte.copy
LTE-5 lte.merged lte.scale lte.due lte.remembered
LTE-6 lte.zeroed lte.redrawn lte.reset_due lte.left
LTE-7 lte.replica lte.shift
LTE-8 lte.reduce lte.mse
LTE-10 lte.state lte.filter_of lte.R_of lte.innovation lte.p_merged lte.p_reset
LTE-13 lte.now lte.main
ATT-1 norm.mean norm.variance norm.deviation norm.nu norm.gain norm.shift norm_back
ATT-2 score_scale scores scores_back attend attend_back values_back named
ATT-2 split_heads split_back merge_heads merge_back
ATT-3 seen mask join_mask causal
ATT-4 embed_position position_rows embed_type embed_token
ATT-5 patches join join_back
ATT-6 pool.mean pool.cls
ATT-7 add add_back layers
"""
"""Label -> the formulas of the table that it derives and a known mistake changes."""

_EQUAL = "a form equal to KAL-2's update, whose mistakes it would show"
_REASONS = {
    "KAL-3": _EQUAL,
    "KAL-4": _EQUAL,
    "KAL-5": _EQUAL,
    "KAL-6": _EQUAL,
    "KAL-7": "a fact about any right update, checked as a property",
    "KAL-8": "when an error is raised: no number to be mistaken",
    "DIAG-3": "a fact about DIAG-1 and DIAG-2, checked as a property",
    "DIAG-5": "roundoff, which is imprecise and not mistaken (TOL-8)",
    "DIAG-6": "a fact about DIAG-1 and DIAG-2, checked as a property",
    "OBS-5": "coordinates in which OBS-2 and OBS-4 are computed; K e and K H are the same",
    "OBS-7": "what OBS-2 and OBS-4 do on confident predictions",
    "OBS-8": "coordinates in which OBS-2 is computed with a general R",
    "NOISE-6": "a fact about NOISE-2 to NOISE-4",
    "NOISE-7": "which options go together: others are refused",
    "LAY-8": "judged by model.jacobian/log-softmax-head; no mistake of it is written down",
    "LORA-1": "random numbers, which an implementation draws for itself",
    "LOKO-3": "an input of the operations: p before the first step",
    "LTE-9": "equal runs on any number of processes, of which an operation shows nothing",
    "LTE-11": "a model of cost",
    "LTE-12": "LTE-1 to LTE-8 on the layers of ATT-1 to ATT-7, whose mistakes it would show",
    "TOL": "how results are judged: no formula of an implementation",
    "BALL": "how the oracle is enclosed: no formula of an implementation",
    "FAST": "a second route of this package, tested equal to the first",
}
"""Label or family -> why no known mistake changes it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One label."""

    # of the derivation
    label: str
    title: str
    # files of the package that cite it; tests that its `Check` names
    code: tuple[str, ...]
    tests: tuple[str, ...]
    mistakes: tuple[str, ...]  # ids of the known mistakes
    reason: str  # why there is none, where there is none


def formulas() -> Mapping[str, tuple[str, ...]]:
    """Return the formulas of each label that a known mistake changes."""
    found: dict[str, tuple[str, ...]] = {}
    for label, *names in map(str.split, _FORMULAS.strip().splitlines()):
        found[label] = (*found.get(label, ()), *names)
    return found


def _citations() -> dict[str, list[str]]:
    """Return for each label the files that cite it in square brackets."""
    root = Path(loko_ref.__file__).parent
    group = re.compile(rf"\[({LABEL}(?:[,;\s#]+{LABEL})*)\]")
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        labels = {one for many in group.findall(text) for one in re.findall(LABEL, many)}
        for label in labels:
            found.setdefault(label, []).append(path.relative_to(root.parent).as_posix())
    return found


def _indexed(label: str) -> tuple[str, ...]:
    """Return where the index states that the label is computed."""
    index = (shipped("derivations") / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {label} \| .* \| ([^|]+) \|$", index, re.MULTILINE)
    return tuple(found[1].strip().split(", ")) if found else ()


def matrix() -> list[Row]:
    """Return a row for each label, in the order of the index."""
    cited, by_formula = _citations(), formulas()
    changed = {one.id: set(one.changes(one.example)) for one in all_mutants()}
    rows = []
    for label, one in derivations().items():
        own = set(by_formula.get(label, ()))
        mistakes = tuple(key for key, names in changed.items() if own & names)
        family = label.split("-")[0]
        rows.append(
            Row(
                label=label,
                title=one.title,
                code=tuple(cited.get(label, ())) or _indexed(label),
                tests=tuple(
                    dict.fromkeys(re.findall(r"tests/[\w/]+(?:\.py)?", one.parts["Check"]))
                ),
                mistakes=mistakes,
                reason="" if mistakes else _REASONS.get(label, _REASONS.get(family, "")),
            )
        )
    return rows
