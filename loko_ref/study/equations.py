"""The lines of LoKO's dataflow for each variant: letter, equation, label, meaning, plain form.

Shapes: theta, p (n,); P (n, n); yhat, y, e (m,); Z, H (m, n); R, S (m, m); K (n, m).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from loko_ref.loko import LokoConfig

__all__ = ["Line", "equations"]

Numbers: TypeAlias = NDArray[np.floating]
Plain: TypeAlias = Callable[[Mapping[str, Numbers], LokoConfig, int], tuple[Numbers, Numbers]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity of the dataflow.

    Attributes
    ----------
    key : str
        Its place in the values.
    name, equation, meaning : str
        Letter, equation and one sentence.
    labels : tuple of str
        Derivations.
    axes : str
        One letter an axis: n entries of theta, m stacked outputs, c classes, s samples, i features.
    plain : callable, optional
        Gives the value and its equation in the plainest form, to be compared.
    """

    key: str
    name: str
    equation: str
    meaning: str
    labels: tuple[str, ...]
    axes: str
    plain: Plain | None = None


def _J(yhat: Numbers, C: int) -> Numbers:
    """Block-diagonal J, one block ``diag(yhat) - yhat yhat'`` a sample."""
    J: Numbers = np.zeros((len(yhat), len(yhat)), yhat.dtype)
    for at in range(0, len(yhat), C):
        part = yhat[at : at + C]
        J[at : at + C, at : at + C] = np.diag(part) - np.outer(part, part)
    return J


def _times(p: Numbers, M: Numbers) -> Numbers:
    """P M, for variances or a covariance."""
    return p[:, None] * M if p.ndim == 1 else p @ M


def _softmax(v: Mapping[str, Numbers], _: LokoConfig, C: int) -> tuple[Numbers, Numbers]:
    s = np.exp(v["z"] - v["z"].max(axis=1, keepdims=True))
    return v["yhat"], (s / s.sum(axis=1, keepdims=True)).reshape(-1)


def _H(v: Mapping[str, Numbers], config: LokoConfig, C: int) -> tuple[Numbers, Numbers]:
    if config.observation in ("softmax", "glm"):
        return v["H"], _J(v["yhat"], C) @ v["Z"]
    if config.center:
        rows = v["Z"].reshape(-1, C, v["Z"].shape[1])
        return v["H"], (rows - rows.mean(axis=1, keepdims=True)).reshape(v["Z"].shape)
    return v["H"], v["Z"]


def _R_before(v: Mapping[str, Numbers], config: LokoConfig, C: int) -> tuple[Numbers, Numbers]:
    if config.observation == "glm":
        return v["R_used"], _J(v["yhat"], C)
    if config.noise == "fixed" or config.timing == "after":
        return v["R_used"], v["R"]
    return v["R_used"], _ema(v, config)


def _ema(v: Mapping[str, Numbers], config: LokoConfig) -> Numbers:
    sample = np.outer(v["e"], v["e"])
    if config.noise != "ema_innovation":
        sample += v["H"] @ _times(v["p_pred"], v["H"].T)
    return config.beta * v["R"] + (1 - config.beta) * sample


def _p_post(v: Mapping[str, Numbers], config: LokoConfig, C: int) -> tuple[Numbers, Numbers]:
    p, H, K = v["p_pred"], v["H"], v["K"]
    if p.ndim == 2:
        return v["p+"], p - K @ (H @ p)
    if config.diagonal == "decoupled":
        return v["p+"], p * (1 - np.einsum("nm,mn->n", K, H))
    if config.observation == "glm":
        gain = np.einsum("mn,mn->n", v["Z"], H)  # diag(Z' J Z), H = J Z
    elif config.observation == "softmax":
        R = v["R_used"]
        gain = np.einsum("mn,mn->n", H, np.linalg.lstsq(R, H, rcond=None)[0])
    else:
        gain = np.einsum("mn,mn->n", H, np.linalg.solve(v["R_used"], H))
    return v["p+"], 1 / (1 / p + gain)


def _observed(config: LokoConfig) -> list[Line]:
    kind = config.observation
    if kind == "gaussian":
        return [
            Line(
                key="yhat",
                name="yhat",
                equation="yhat = z",
                meaning="What is expected to be seen: the output itself.",
                labels=("OBS-1",),
                axes="m",
                plain=lambda v, _, C: (v["yhat"], v["z"].reshape(-1)),
            ),
            Line(
                key="e",
                name="e",
                equation="e = y - yhat",
                meaning="The innovation: the part of the observation that was not expected.",
                labels=("OBS-1",),
                axes="m",
                plain=lambda v, _, C: (v["e"], v["y"] - v["yhat"]),
            ),
            Line(
                key="H",
                name="H",
                equation="H = Z",
                meaning="How the observation moves with theta: as the output does.",
                labels=("OBS-1",),
                axes="mn",
                plain=_H,
            ),
        ]
    label = {"softmax": "OBS-2", "logits": "OBS-3", "glm": "OBS-4"}[kind]
    if kind == "logits":
        equation = "H = (I - 1 1'/C) Z" if config.center else "H = Z"
        meaning = (
            "How the logits move with theta. This is not the Jacobian of yhat; -H'e is the "
            "gradient of the cross-entropy."
        )
    else:
        equation = "H = J Z,  J = diag(yhat) - yhat yhat'"
        meaning = (
            "How the probabilities move with theta; each column sums to 0 over the classes. "
            "Where yhat is sure of itself, J and H are almost 0."
        )
    return [
        Line(
            key="yhat",
            name="yhat",
            equation="yhat = softmax(z)",
            meaning="What is expected to be seen: the probability of each class.",
            labels=tuple(dict.fromkeys(("OBS-2", label))),
            axes="m",
            plain=_softmax,
        ),
        Line(
            key="e",
            name="e",
            equation="e = y - yhat",
            meaning="The innovation: the surprise. Sums to 0; positive at the true class alone.",
            labels=(label,),
            axes="m",
            plain=lambda v, _, C: (v["e"], v["y"] - v["yhat"]),
        ),
        Line(
            key="H",
            name="H",
            equation=equation,
            meaning=meaning,
            labels=(label,),
            axes="mn",
            plain=_H,
        ),
    ]


_EMA = {
    "ema_innovation": ("beta R + (1 - beta) e e'", "NOISE-2"),
    "ema_innovation_hph": ("beta R + (1 - beta)(e e' + H p H')", "NOISE-3"),
    "ema_residual_hph": ("beta R + (1 - beta)(r r' + H p+ H'),  r = y - h(theta+)", "NOISE-4"),
}


def _noise(config: LokoConfig, first: bool) -> Line:
    noise = str(config.noise)
    labels: tuple[str, ...]
    if config.observation == "glm":
        equation, labels = "R = Cov(y | yhat) = J", ("OBS-4",)
        meaning = "How far a one-hot y scatters by chance about yhat: no noise is tuned."
    elif noise == "fixed":
        equation, labels = "R = R_0 = r0 I", ("NOISE-1",)
        meaning = "How noisy an observation is taken to be, once and for all."
    elif config.timing == "after":
        equation, labels = ("R = R_0 = r0 I", ("NOISE-1",)) if first else ("R", ("NOISE-5",))
        meaning = "How noisy an observation is taken to be, by all steps before this one."
    else:
        equation, label = _EMA[noise]
        equation, labels = f"R <- {equation}", (label, "NOISE-5")
        meaning = "How noisy an observation is taken to be, by past surprises and this one."
    return Line(
        key="R_used",
        name="R",
        equation=equation,
        meaning=meaning,
        labels=labels,
        axes="mm",
        plain=_R_before,
    )


def _gain(config: LokoConfig) -> Line:
    P = "P" if config.covariance == "dense" else "diag(p)"
    labels: tuple[str, ...] = ("KAL-2",)
    equation = f"K = {P} H' S^-1"
    if config.observation == "softmax":
        equation = f"K = {P} H' Q' (Q S Q')^-1 Q,  Q the contrasts: Q Q' = I, Q 1 = 0"
        labels = ("KAL-2", "OBS-5")
    elif config.observation == "glm":
        equation = f"K e = {P} Z' (I + J G)^-1 e,  G = Z {P} Z':  J is never inverted"
        labels = ("KAL-2", "OBS-6")
    return Line(
        key="K",
        name="K",
        equation=equation,
        meaning="How far each entry of theta follows each surprise: its uncertainty, times how "
        "much it was seen, over the uncertainty of the sight. (Compared: K S = P H'.)",
        labels=labels,
        axes="nm",
        plain=lambda v, _, C: (v["K"] @ v["S"], _times(v["p_pred"], v["H"].T)),
    )


def _posterior(config: LokoConfig) -> Line:
    meaning = "What is left of the uncertainty: never more than before, never 0."
    if config.covariance == "dense":
        equation = {
            "textbook": "P+ = P - K H P",
            "joseph": "P+ = (I - K H) P (I - K H)' + K R K'",
            "information": "P+^-1 = P^-1 + H' R^-1 H",
            "sequential": "P+ = P - K H P, one output after the other",
        }[config.form]
        label = {"textbook": "KAL-2", "joseph": "KAL-3", "information": "KAL-4"}
        labels = (label.get(config.form, "KAL-5"), "LOKO-4")
        name, axes = "P+", "nn"
    elif config.diagonal == "decoupled":
        equation, labels = "p+ = p o (1 - diag(K H))", ("DIAG-1", "DIAG-4")
        name, axes = "p+", "n"
    else:
        inside = "Z' J Z" if config.observation == "glm" else "H' R^-1 H"
        equation, labels = f"1 / p+ = 1 / p + diag({inside})", ("DIAG-2", "DIAG-4")
        name, axes = "p+", "n"
    return Line(
        key="p+",
        name=name,
        equation=equation,
        meaning=meaning,
        labels=labels,
        axes=axes,
        plain=_p_post,
    )


def equations(config: LokoConfig, *, first: bool = False) -> list[Line]:
    """List the lines of a variant's step in dataflow order.

    Parameters
    ----------
    config : LokoConfig
        The variant.
    first : bool
        Whether this is step 0, before which theta and p are the prior chosen by hand.

    Returns
    -------
    list of Line
    """
    dense = config.covariance == "dense"
    letter, axes = ("P", "nn") if dense else ("p", "n")
    forget = f"{letter} <- {letter} / lam + q" + (" I" if dense else "")
    if config.lam == 1 and config.q == 0:
        forget += f" = {letter}  (lam = 1, q = 0)"
    lines = [
        Line(
            key="theta",
            name="theta",
            equation="theta = (A, B of each site in turn), packed",
            meaning="What is believed of the LoRA factors"
            + (": each B is 0 at first, so LoRA adds nothing yet." if first else " so far."),
            labels=("LORA-1", "LORA-4") if first else ("LORA-4",),
            axes="n",
        ),
        Line(
            key="p_pred",
            name=letter,
            equation=(f"{letter} = p0 at first; " if first else "") + forget,
            meaning="How unsure theta is, before this sample: a variance for each entry.",
            labels=("LOKO-3", "KAL-1") if first else ("KAL-1",),
            axes=axes,
            plain=lambda v, c, C: (
                v["p_pred"],
                v["p"] / c.lam + (c.q if v["p"].ndim == 1 else c.q * np.eye(len(v["p"]))),
            ),
        ),
        Line(
            key="x",
            name="x",
            equation="(given)",
            meaning="The input: scaled features, for images the pixels row by row.",
            labels=("LAY-1",),
            axes="si",
        ),
        Line(
            key="z",
            name="z",
            equation="z = f(x; theta)",
            meaning="The network's outputs at the prior theta.",
            labels=("LAY-1", "LAY-2"),
            axes="sc",
        ),
        Line(
            key="Z",
            name="Z",
            equation="Z = dz / dtheta",
            meaning="How each output moves with each entry of theta, by one backward pass for all "
            "outputs."
            + (" While B = 0 the output does not see A: its columns are 0." if first else ""),
            labels=("LAY-9", "LAY-10"),
            axes="mn",
        ),
        Line(
            key="y",
            name="y",
            equation="(given)",
            meaning="The observation: what the sample is."
            if config.observation == "gaussian"
            else "The observation: 1 at the true class.",
            labels=("KAL-1",),
            axes="m",
        ),
        *_observed(config),
        _noise(config, first),
        Line(
            key="S",
            name="S",
            equation=f"S = H {'P' if dense else 'diag(p)'} H' + R",
            meaning="How large a surprise was to be expected: theta's uncertainty seen through H, "
            "and the noise.",
            labels=("KAL-2",),
            axes="mm",
            plain=lambda v, _, C: (
                v["S"],
                v["H"] @ _times(v["p_pred"], v["H"].T) + v["R_used"],
            ),
        ),
        _gain(config),
        Line(
            key="theta+",
            name="theta+",
            equation="theta+ = theta + K e",
            meaning="What is believed now.",
            labels=("KAL-2", "LOKO-1"),
            axes="n",
            plain=lambda v, _, C: (v["theta+"], v["theta"] + v["K"] @ v["e"]),
        ),
        _posterior(config),
    ]
    if config.timing == "after" and config.noise in _EMA:
        equation, label = _EMA[str(config.noise)]
        lines.append(
            Line(
                key="R+",
                name="R+",
                equation=f"R+ = {equation}",
                meaning="The noise estimate that the next step will use.",
                labels=(label, "NOISE-5"),
                axes="mm",
                plain=None
                if config.noise == "ema_residual_hph"
                else lambda v, c, C: (v["R+"], _ema(v, c)),
            )
        )
    return lines
