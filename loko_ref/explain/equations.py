"""The lines of LoKO's step for each variant: letter, equation, label and meaning.

Equations and labels are those of the table of quantities, :mod:`loko_ref.textbook.loko`; this
module adds a sentence on what each quantity means.

Shapes: theta, p (n,); P (n, n); yhat, y, e (m,); Z, H (m, n); R, S (m, m); K (n, m).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loko_ref.kalman.lowrank import PRECISIONS
from loko_ref.loko import LokoConfig
from loko_ref.textbook.loko import dataflow
from loko_ref.textbook.quantities import Quantity

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity of the dataflow."""

    key: str  # its name among the values, and in the table of quantities
    # letter, equation and one sentence
    name: str
    equation: str
    meaning: str
    labels: tuple[str, ...]  # derivations
    # one letter per axis: n entries of theta, m stacked outputs, c classes, s samples, i features
    axes: str
    quantity: Quantity | None = None  # its entry in the table; None for an input


_AXES = {
    "z": "sc", "Z": "mn", "yhat": "m", "e": "m", "H": "mn", "R_used": "mm", "S": "mm",
    "K": "nm", "v": "m", "theta_post": "n", "R_post": "mm",
}  # fmt: skip

_MEANING = {
    "p_pred": "The prior uncertainty of theta: one variance per entry.",
    "z": "The network's outputs at the prior theta.",
    "Z": "The Jacobian of the outputs with respect to theta, by one backward pass for all.",
    "S": "The innovation's predicted covariance: theta's uncertainty mapped through H, plus the "
    "observation noise.",
    "K": "The Kalman gain, how far each entry of theta moves per unit of innovation: its "
    "covariance with the observation over the innovation's covariance. (Compared: K S = P H'.)",
    "v": "The innovation at the posterior mean: what is left of e once theta has moved. It solves "
    "its own equation, and is damped where e would overshoot.",
    "theta_post": "The posterior mean.",
    "p_post": "The posterior uncertainty: never more than the prior's, never 0.",
    "R_post": "The noise estimate that the next step uses.",
}

_SEEN = {
    "gaussian": {
        "yhat": "The predicted observation: the output itself.",
        "e": "The innovation: the observation minus its prediction.",
        "H": "The Jacobian of the predicted observation with respect to theta: that of the output.",
    },
    "logits": {
        "H": "The Jacobian of the logits with respect to theta, not that of yhat; -H'e is the "
        "gradient of the cross-entropy."
    },
}
_CLASSES = {
    "yhat": "The predicted observation: the probability of each class.",
    "e": "The innovation. Sums to 0; positive only at the true class.",
    "H": "The Jacobian of the probabilities with respect to theta; each column sums to 0 over the "
    "classes. Where a prediction is confident, J and H are almost 0.",
}
"""Meanings that depend on the observation model."""

_FORMS = {
    "joseph": ("(I - K H) P (I - K H)' + K R K'", "KAL-3"),
    "information": ("(P^-1 + H' R^-1 H)^-1", "KAL-4"),
    "sequential": ("P - K H P, one output after the other", "KAL-5"),
    "lowrank": ("(B + W W')^-1: of [W, H'] the L longest columns stay in W, diagonal B", "KAL-9"),
    "block": ("(B + W W')^-1: of [W, H'] the L longest columns stay in W, blocks B", "KAL-10"),
}
"""Form of the dense update -> equation and label, for forms other than the textbook's."""


def options(config: LokoConfig) -> dict[str, Any]:
    """Return a variant's options by their names in the table of quantities."""
    names = ("observation", "noise", "timing", "covariance", "diagonal", "center", "solve", "form")
    found = {name: getattr(config, name) for name in (*names, "lam", "q", "beta")}
    if config.covariance in PRECISIONS:  # its inverse is shown
        found |= {"covariance": "dense", "form": config.covariance}
    return found


def _noise_meaning(o: Options) -> str:
    if o["observation"] == "glm":
        return "The covariance of a one-hot y given yhat: there is no noise to be tuned."
    if o["noise"] == "fixed":
        return "The observation noise, constant."
    if o["timing"] == "after":
        return "The observation noise, estimated from all steps before this one."
    return "The observation noise, estimated from the innovations up to this one."


def _line(q: Quantity, o: Options, first: bool) -> Line:
    dense = o["covariance"] == "dense"
    letter = "P" if dense else "p"
    name = {
        "p_pred": letter,
        "R_used": "R",
        "theta_post": "theta+",
        "p_post": f"{letter}+",
        "R_post": "R+",
    }.get(q.name, q.name)
    equation, labels = f"{name} = {q.equation}", q.labels
    seen = _CLASSES | _SEEN.get(o["observation"], {})
    meaning = (_MEANING | seen).get(q.name, "")
    if q.name == "p_pred":
        equation = f"{letter} <- {q.equation}"
        if o["lam"] == 1 and o["q"] == 0:
            equation += f" = {letter}  (lam = 1, q = 0)"
        if first:
            equation, labels = f"{letter} = p0 at first; {equation}", ("LOKO-3", *labels)
    elif q.name == "Z" and first:
        meaning += " While B = 0 the output does not depend on A: its columns are 0."
    elif q.name == "R_used":
        meaning = _noise_meaning(o)
        if o["noise"] == "fixed" or (o["timing"] == "after" and first):
            equation, labels = "R = R_0 = r0 I", ("NOISE-1",)
        elif o["timing"] == "before" and o["observation"] != "glm":
            equation = f"R <- {q.equation}"
    elif q.name == "p_post" and dense and o.get("form") in _FORMS:
        form, label = _FORMS[o["form"]]
        equation, labels = f"P+ = {form}", (label, "LOKO-4")
        if o["form"] in PRECISIONS:
            meaning += " What is cut is the difference from the dense P - K H P."
    axes = "n" * (2 if dense else 1) if q.name in ("p_pred", "p_post") else _AXES[q.name]
    return Line(
        key=q.name,
        name=name,
        equation=equation,
        meaning=meaning,
        labels=labels,
        axes=axes,
        quantity=q,
    )


def equations(o: Options, *, first: bool = False) -> list[Line]:
    """Return the lines of a variant's step in dataflow order.

    Parameters
    ----------
    o : mapping
        The variant's options, by their names in the table of quantities.
    first : bool
        Whether this is step 0, at which theta and p are the configured prior.

    Returns
    -------
    list of Line
    """
    given = {
        "theta": Line(
            key="theta",
            name="theta",
            equation="theta = (A, B of each site in turn), packed",
            meaning="The prior mean of the LoRA factors"
            + (": each B is 0 at first, so LoRA adds nothing yet." if first else "."),
            labels=("LORA-1", "LORA-4") if first else ("LORA-4",),
            axes="n",
        ),
        "x": Line(
            key="x",
            name="x",
            equation="(given)",
            meaning="The input: scaled features, for images the pixels row by row.",
            labels=("LAY-1",),
            axes="si",
        ),
        "y": Line(
            key="y",
            name="y",
            equation="(given)",
            meaning="The observation: the target value."
            if o["observation"] == "gaussian"
            else "The observation: 1 at the true class.",
            labels=("KAL-1",),
            axes="m",
        ),
    }
    before = {"p_pred": "theta", "z": "x", "yhat": "y"}
    copied = o["timing"] == "before"  # R_post is this step's R
    lines = []
    for q in dataflow(o):
        if q.hidden or (q.name == "R_post" and copied):
            continue
        if q.name in before:
            lines.append(given[before[q.name]])
        lines.append(_line(q, o, first))
    return lines
