"""Hypothesis strategies: the inputs on which a LoKO implementation should be tried.

For the property tests of this package, and of anyone else's::

    from hypothesis import given
    from loko_ref import strategies as st

    @given(st.diagonal_problems(max_n=8, cond=1e8))
    def test_variances_shrink(problem):
        new = my_update(**problem.arguments())
        assert (new["p"] <= problem.p).all()

Shapes: theta, p (n,); P (n, n); H, Z (m, n); e (m,); R (m, m); yhat (batch, C), m = batch * C.

What every strategy keeps to:

* an array's entries are quarters of small whole numbers (exact in float32; they shrink to 0 and
  hit degenerate cases: zeros, equal rows), or Gaussian;
* conditioning is bounded and stated: an argument ``cond`` bounds the ratio of the largest to the
  smallest eigenvalue (or variance), and is never exceeded but for rounding;
* where ``dtype`` is None the draw chooses float64 or float32; whatever the dtype, ``cond`` is
  lowered to what it can hold (:func:`cond_limit`);
* every array drawn is read-only: an implementation that writes to its inputs raises on the spot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref import kalman
from loko_ref.errors import InputError, MissingExtraError
from loko_ref.layers.activation import ACTIVATIONS
from loko_ref.loko import COVARIANCES, Batch, LokoConfig, LokoState
from loko_ref.model import Model, mlp_spec, pack, param_shapes, sites

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("loko_ref.strategies", "hypothesis", "test") from error

__all__ = [
    "DenseProblem",
    "DiagonalProblem",
    "GlmProblem",
    "arrays",
    "batches",
    "cond_limit",
    "configs",
    "dense_problems",
    "diagonal_problems",
    "dtypes",
    "factors",
    "glm_problems",
    "innovations",
    "models",
    "probabilities",
    "spd_matrices",
    "states",
    "variances",
]

Floats = NDArray[np.floating[Any]]


def cond_limit(m: int, dtype: str = "float64") -> float:
    """Largest conditioning that is drawn at size m: ``1 / (64 m eps)``.

    Up to there an m x m matrix is positive definite after rounding, with a margin.

    Examples
    --------
    >>> f"{cond_limit(4, 'float32'):.0f}"
    '32768'
    """
    return float(1 / (64 * max(m, 1) * np.finfo(dtype).eps))


def _frozen(a: NDArray[Any]) -> Any:
    a.flags.writeable = False
    return a


def _check_cond(cond: float) -> None:
    if not cond >= 1:
        raise InputError("cond", cond, "a number >= 1", "a reciprocal condition number")


def dtypes() -> st.SearchStrategy[str]:
    """Draw ``"float64"`` or ``"float32"``."""
    return st.sampled_from(["float64", "float32"])


def _dtype(dtype: str | None) -> st.SearchStrategy[str]:
    return dtypes() if dtype is None else st.just(dtype)


def _rngs() -> st.SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def arrays(
    draw: st.DrawFn, shape: int | tuple[int, ...], *, dtype: str = "float64", size: float = 4.0
) -> Floats:
    """Draw an array of one shape: quarters of whole numbers, or Gaussian.

    Parameters
    ----------
    shape : int or tuple of int
        Its shape.
    dtype : str
        float64 or float32.
    size : float
        Bound on the entries' magnitude (Gaussian ones have standard deviation size / 4 and are
        clipped there).

    Examples
    --------
    >>> from hypothesis import find
    >>> float(find(arrays((2, 2)), lambda a: a.max() > 1).max())
    1.25
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    most = int(4 * size)
    quarters = draw(st.lists(st.integers(-most, most), min_size=count, max_size=count))
    if draw(st.booleans()):  # the same numbers as a seed: a failing example shrinks to quarters
        rng = np.random.default_rng([most + q for q in quarters] or 0)
        a = np.clip(rng.standard_normal(shape) * (size / 4), -size, size)
    else:
        a = np.array(quarters, dtype=float).reshape(shape) / 4
    return _frozen(a.astype(dtype))


def innovations(m: int, *, dtype: str = "float64", size: float = 4.0) -> st.SearchStrategy[Floats]:
    """Draw an innovation e (m,), entries within ±size; 0 among them."""
    return arrays(m, dtype=dtype, size=size)


@st.composite
def variances(
    draw: st.DrawFn,
    n: int,
    *,
    cond: float = 1e4,
    scale: tuple[float, float] = (1e-3, 1e1),
    dtype: str = "float64",
) -> Floats:
    """Draw variances p (n,) > 0.

    Parameters
    ----------
    n : int
        How many.
    cond : float
        Bound on max(p) / min(p).
    scale : (float, float)
        Interval of the largest one.
    dtype : str
        float64 or float32.
    """
    _check_cond(cond)
    top = 10 ** draw(st.floats(math.log10(scale[0]), math.log10(scale[1])))
    low = draw(st.floats(0, math.log10(min(cond, cond_limit(n, dtype)))))
    fall = np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)), dtype=float)
    p = top * 10 ** (-low * (fall - fall.min(initial=1.0)))  # the largest is `top`
    return _frozen(p.astype(dtype))


@st.composite
def spd_matrices(
    draw: st.DrawFn,
    m: int,
    *,
    cond: float = 1e4,
    scale: tuple[float, float] = (1e-2, 1e1),
    dtype: str = "float64",
    diagonal: bool = False,
) -> Floats:
    """Draw a symmetric positive definite matrix (m, m), exactly symmetric.

    Its eigenvectors are the axes or those of a Gaussian matrix.

    Parameters
    ----------
    m : int
        Size.
    cond : float
        Bound on the condition number, up to rounding; at most ``cond_limit(m, dtype)`` is drawn.
    scale : (float, float)
        Interval of the largest eigenvalue.
    dtype : str
        float64 or float32.
    diagonal : bool
        Whether to draw diagonal matrices only.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(spd_matrices(2, scale=(1, 10)), lambda S: True)
    array([[1., 0.],
           [0., 1.]])
    """
    w = draw(variances(m, cond=min(cond, cond_limit(m, dtype)), scale=scale))
    if diagonal or not draw(st.booleans()):
        S = np.diag(w)
    else:
        Q, _ = np.linalg.qr(draw(_rngs()).standard_normal((m, m)))
        S = (Q * w) @ Q.T
        S = (S + S.T) / 2  # the same number on both sides, exactly
    return _frozen(S.astype(dtype))


@st.composite
def probabilities(
    draw: st.DrawFn,
    batch: int,
    C: int,
    *,
    margin: float = 40.0,
    dtype: str = "float64",
) -> Floats:
    """Draw class probabilities yhat (batch, C): softmax of logits, mild to saturated.

    Rows sum to 1 to rounding. A row may be one-hot to the last bit (always possible, whatever the
    margin), or hold entries down to exp(-margin).

    Parameters
    ----------
    batch, C : int
        Samples and classes.
    margin : float
        Bound on the difference of two logits.
    dtype : str
        float64 or float32.
    """
    rows = []
    for _ in range(batch):
        kind = draw(st.sampled_from(["mild", "saturated", "one-hot"]))
        if kind == "one-hot":
            rows.append(np.eye(C)[draw(st.integers(0, C - 1))])
            continue
        spread = min(4.0, margin) if kind == "mild" else margin
        z = np.array(draw(st.lists(st.floats(0, 1), min_size=C, max_size=C))) * spread
        s = np.exp(z - z.max())
        rows.append(s / s.sum())
    return _frozen(np.array(rows).reshape(batch, C).astype(dtype))


@st.composite
def factors(
    draw: st.DrawFn,
    *,
    max_width: int = 6,
    bias: bool | None = None,
    dtype: str | None = None,
) -> dict[str, Floats]:
    """Draw one site's trained factors: A (r, i), B (o, r), perhaps bA (r,), bB (o,).

    B is not held at 0, where training begins.

    Parameters
    ----------
    max_width : int
        Bound on i and o; 1 <= r <= min(i, o).
    bias : bool, optional
        Whether bA and bB are there; None draws it.
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(_dtype(dtype))
    i, o = draw(st.integers(1, max_width)), draw(st.integers(1, max_width))
    r = draw(st.integers(1, min(i, o)))
    drawn = {"A": draw(arrays((r, i), dtype=dtype)), "B": draw(arrays((o, r), dtype=dtype))}
    if draw(st.booleans()) if bias is None else bias:
        drawn |= {"bA": draw(arrays(r, dtype=dtype)), "bB": draw(arrays(o, dtype=dtype))}
    return drawn


@st.composite
def models(
    draw: st.DrawFn,
    *,
    max_width: int = 5,
    max_depth: int = 3,
    activations: tuple[str, ...] = tuple(ACTIVATIONS),
    min_outputs: int = 1,
    train_all: bool = False,
    dtype: str | None = None,
) -> Model:
    """Draw a stack of linear layers with LoRA on each, activations between, weights of order 1.

    Parameters
    ----------
    max_width, max_depth : int
        Bounds on every width and on the number of linear layers.
    activations : tuple of str
        Names to draw from.
    min_outputs : int
        Least width of the output; 2 where classes are observed.
    train_all : bool
        Whether W and b are trainable beside the factors.
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(_dtype(dtype))
    depth = draw(st.integers(1, max_depth))
    widths = draw(st.lists(st.integers(1, max_width), min_size=depth + 1, max_size=depth + 1))
    widths[-1] = max(widths[-1], min_outputs)
    spec: list[dict[str, Any]] = []
    for layer in mlp_spec(widths):
        if layer["kind"] == "linear":
            r = draw(st.integers(1, min(layer["in"], layer["out"])))
            site = {"r": r, "alpha": draw(st.sampled_from([1.0, 2.0, 0.5, 8.0]))}
            spec.append({**layer, "lora": {**site, "bias": draw(st.booleans())}})
        else:
            spec.append({"kind": draw(st.sampled_from(activations))})
    shapes = param_shapes(spec)
    weights = {name: draw(arrays(s, dtype=dtype, size=2.0)) for name, s in shapes.items()}
    return Model(spec=spec, weights=weights, trainable=tuple(shapes) if train_all else ())


@st.composite
def batches(
    draw: st.DrawFn,
    model: Model,
    *,
    observation: str = "glm",
    size: int | None = None,
    max_size: int = 3,
) -> Batch:
    """Draw a batch for a model: inputs x, and labels (real rows for ``gaussian``).

    Parameters
    ----------
    model : Model
        Gives widths and dtype.
    observation : str
        The observation model for which y is meant.
    size : int, optional
        Samples; None draws 1 to `max_size`.
    max_size : int
        The most samples.
    """
    size = draw(st.integers(1, max_size)) if size is None else size
    dtype, C = str(model.dtype), model.outputs
    x = draw(arrays((size, model.inputs), dtype=dtype, size=2.0))
    if observation == "gaussian":
        return Batch(x=x, y=draw(arrays((size, C), dtype=dtype)))
    labels = draw(st.lists(st.integers(0, C - 1), min_size=size, max_size=size))
    return Batch(x=x, y=_frozen(np.array(labels)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """Named arrays, given to an implementation by :meth:`arguments`."""

    theta: Floats

    def arguments(self) -> dict[str, Any]:
        """Return the arrays by name, as keyword arguments of an update."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalProblem(_Problem):
    """One measurement update with a diagonal prior.

    Attributes
    ----------
    theta, p : array (n,)
        Prior mean and variances.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation.
    R : array (m, m)
        Observation noise.
    """

    p: Floats
    H: Floats
    e: Floats
    R: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseProblem(_Problem):
    """One measurement update with a dense prior.

    Attributes
    ----------
    theta : array (n,)
        Prior mean.
    P : array (n, n)
        Prior covariance.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation.
    R : array (m, m)
        Observation noise.
    """

    P: Floats
    H: Floats
    e: Floats
    R: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class GlmProblem(_Problem):
    """One ``glm`` update: R is the covariance of a one-hot y given yhat.

    Attributes
    ----------
    theta, p : array (n,)
        Prior mean and variances.
    Z : array (m, n)
        Jacobian of the logits, m = batch * C.
    e : array (m,)
        Innovation y - yhat with y one-hot.
    yhat : array (batch, C)
        Class probabilities.
    """

    p: Floats
    Z: Floats
    e: Floats
    yhat: Floats


@st.composite
def diagonal_problems(
    draw: st.DrawFn,
    *,
    max_n: int = 6,
    max_m: int = 4,
    cond: float = 1e4,
    diagonal_noise: bool = False,
    dtype: str | None = None,
) -> DiagonalProblem:
    """Draw a diagonal measurement update.

    Parameters
    ----------
    max_n, max_m : int
        Bounds on the number of parameters and of outputs.
    cond : float
        Bound on cond(R) and on max(p) / min(p).
    diagonal_noise : bool
        Whether R is diagonal.
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(_dtype(dtype))
    n, m = draw(st.integers(1, max_n)), draw(st.integers(1, max_m))
    return DiagonalProblem(
        theta=draw(arrays(n, dtype=dtype)),
        p=draw(variances(n, cond=cond, dtype=dtype)),
        H=draw(arrays((m, n), dtype=dtype)),
        e=draw(innovations(m, dtype=dtype)),
        R=draw(spd_matrices(m, cond=cond, dtype=dtype, diagonal=diagonal_noise)),
    )


@st.composite
def dense_problems(
    draw: st.DrawFn,
    *,
    max_n: int = 5,
    max_m: int = 4,
    cond: float = 1e4,
    diagonal_noise: bool = False,
    dtype: str | None = None,
) -> DenseProblem:
    """Draw a dense measurement update.

    Parameters
    ----------
    max_n, max_m : int
        Bounds on the number of parameters and of outputs.
    cond : float
        Bound on cond(P) and on cond(R).
    diagonal_noise : bool
        Whether R is diagonal, as sequential scalar updates need it.
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(_dtype(dtype))
    n, m = draw(st.integers(1, max_n)), draw(st.integers(1, max_m))
    return DenseProblem(
        theta=draw(arrays(n, dtype=dtype)),
        P=draw(spd_matrices(n, cond=cond, dtype=dtype)),
        H=draw(arrays((m, n), dtype=dtype)),
        e=draw(innovations(m, dtype=dtype)),
        R=draw(spd_matrices(m, cond=cond, dtype=dtype, diagonal=diagonal_noise)),
    )


@st.composite
def glm_problems(
    draw: st.DrawFn,
    *,
    max_n: int = 5,
    max_batch: int = 2,
    max_C: int = 4,
    margin: float = 40.0,
    cond: float = 1e4,
    dtype: str | None = None,
) -> GlmProblem:
    """Draw a ``glm`` measurement update, at mild and at saturated probabilities.

    Parameters
    ----------
    max_n, max_batch, max_C : int
        Bounds on parameters, samples and classes (at least 2 classes).
    margin : float
        Bound on the difference of two logits.
    cond : float
        Bound on max(p) / min(p).
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(_dtype(dtype))
    n, batch = draw(st.integers(1, max_n)), draw(st.integers(1, max_batch))
    C = draw(st.integers(2, max_C))
    yhat = draw(probabilities(batch, C, margin=margin, dtype=dtype))
    labels = draw(st.lists(st.integers(0, C - 1), min_size=batch, max_size=batch))
    return GlmProblem(
        theta=draw(arrays(n, dtype=dtype)),
        p=draw(variances(n, cond=cond, dtype=dtype)),
        Z=draw(arrays((batch * C, n), dtype=dtype)),
        e=_frozen((np.eye(C, dtype=dtype)[labels] - yhat).reshape(-1)),
        yhat=yhat,
    )


@st.composite
def configs(
    draw: st.DrawFn, /, model: Model, *, covariance: str | None = None, **fixed: Any
) -> LokoConfig:
    """Draw a valid LoKO configuration for a model, from every choice that the package lists.

    Parameters
    ----------
    model : Model
        The network; one with a single output is observed as ``gaussian``.
    covariance : {"diagonal", "dense"}, optional
        None draws it.
    **fixed
        Any further field of :class:`loko_ref.loko.LokoConfig`, taken as given.
    """
    valid = [
        c
        for c in kalman.noise.combinations()
        if (model.outputs > 1 or c[0] == "gaussian")
        and all(
            fixed.get(key) in (None, value)
            for key, value in zip(("observation", "noise", "timing"), c, strict=True)
        )
    ]
    observation, noise, timing = draw(st.sampled_from(valid))
    named = {name: draw(st.sampled_from([0.07, 0.5])) for name, _, _ in sites(model)}
    choices: dict[str, Any] = {
        "observation": observation,
        "noise": noise,
        "timing": timing,
        "beta": draw(st.sampled_from([0.95, 0.5, 0.0])),
        "r0": draw(st.sampled_from([1.0, 0.1, 10.0])),
        "p0": draw(st.sampled_from([0.07, 1.0, named])),
        "covariance": draw(st.sampled_from(COVARIANCES)) if covariance is None else covariance,
        "diagonal": draw(st.sampled_from(kalman.diagonal.DIAGONALS)),
        "form": draw(st.sampled_from(["joseph", "textbook", "information"])),
        "lam": draw(st.sampled_from([1.0, 0.99])),
        "q": draw(st.sampled_from([0.0, 1e-3])),
        "center": observation == "logits" and draw(st.booleans()),
    }
    return LokoConfig(model=model, **(choices | fixed))


@st.composite
def states(draw: st.DrawFn, config: LokoConfig, *, batch: int = 1, cond: float = 1e3) -> LokoState:
    """Draw a filter's state in the middle of a run.

    R is symmetric positive definite; for ``softmax`` and centred ``logits`` it has the form that
    their averages keep, r I plus contrasts: each sample's all-ones vector is an eigenvector.

    Parameters
    ----------
    config : LokoConfig
        The choices; gives model and dtype.
    batch : int
        Samples a step.
    cond : float
        Bound on the conditioning of p (or P) and R.
    """
    theta = pack(config.model)
    dtype, n, C = str(theta.dtype), theta.shape[0], config.model.outputs
    m = batch * C
    R: Any = None
    if config.observation == "softmax" or config.center:
        # r (I + c c'), c a contrast within each sample: cond(R) = 1 + |c|^2 <= cond
        c = np.array(draw(arrays((batch, C), size=2.0)))
        c = (c - c.mean(axis=1, keepdims=True)).reshape(-1)
        size = float(np.linalg.norm(c))
        if size > math.sqrt(cond - 1):
            c *= math.sqrt(cond - 1) / size
        R = _frozen(
            (draw(st.sampled_from([1.0, 0.1])) * (np.eye(m) + np.outer(c, c))).astype(dtype)
        )
    elif config.observation != "glm":
        R = draw(spd_matrices(m, cond=cond, dtype=dtype))
    mean = draw(arrays(n, dtype=dtype, size=2.0))
    step = draw(st.integers(0, 1000))
    if config.covariance == "dense":
        P = draw(spd_matrices(n, cond=cond, scale=(1e-2, 1.0), dtype=dtype))
        return LokoState(theta=mean, P=P, R=R, step=step)
    p = draw(variances(n, cond=cond, scale=(1e-2, 1.0), dtype=dtype))
    return LokoState(theta=mean, p=p, R=R, step=step)
