"""Adapters for a ``torch.optim.Optimizer`` with its module, and for a pure step function.

``from_torch`` makes ``loko.step`` and ``loko.run`` from an optimizer; ``from_step`` from a pure
function in any library whose arrays NumPy can read (JAX, torch.func, CuPy through ``get``). A
library is imported only when it is used.

Shapes as in ``loko-ref operations``; parameters of a module have the names of weights ("0.A").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.interop.torch_module import build_module, import_torch
from loko_ref.network.spec import factor_shapes

__all__ = ["build_module", "from_step", "from_torch"]

Outputs = dict[str, Any]


def _loop(step: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Return ``loko.run`` made from ``loko.step``: each step starts from the previous state."""

    def run(x: Array, y: Array, theta: Array, **rest: Any) -> Outputs:
        state = {name: rest.pop(name) for name in ("p", "P", "R") if name in rest}
        rows = []
        for xs, ys in zip(x, y, strict=True):
            rows.append(step(x=xs, y=ys, theta=theta, **state, **rest))
            theta = rows[-1]["theta"]
            state = {name: rows[-1][name] for name in state}
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return run


def from_torch(
    make: Callable[[Any, dict[str, Any]], Any],
    step: Callable[[Any, Any, Any, Any], Any],
    *,
    covariance: str = "p",
    noise: str = "R",
) -> dict[str, Callable[..., Outputs]]:
    """Return an implementation made from a torch optimizer.

    Parameters
    ----------
    make : callable
        ``(module, options) -> optimizer``; raises NotImplementedError for options it lacks.
    step : callable
        ``(optimizer, module, x, y)``: one step, in place.
    covariance : str
        Key of a parameter's variances in ``optimizer.state[parameter]``.
    noise : str
        Key of R in ``optimizer.param_groups[0]``.

    Returns
    -------
    dict
        ``loko.step`` and ``loko.run``, which return theta, p and R.
    """
    torch = import_torch()

    def start(spec: Any, weights: Any, theta: Array, p: Array, R: Array | None, o: Any) -> Any:
        named, variances, at = dict(weights), {}, 0
        for name, shape in factor_shapes(spec).items():
            span = slice(at, at + math.prod(shape))
            at = span.stop
            named[name] = theta[span].reshape(shape)
            variances[name] = p[span].reshape(shape)
        module = build_module(spec, named)
        optimizer = make(module, o)
        for name, parameter in module.named_parameters():
            optimizer.state[parameter][covariance] = torch.from_numpy(variances[name].copy())
        if R is not None:
            optimizer.param_groups[0][noise] = torch.from_numpy(R.copy())
        return module, optimizer

    def read(module: Any, spec: Any, optimizer: Any, R: Array | None) -> Outputs:
        parameters = [module.get_parameter(name) for name in factor_shapes(spec)]

        def packed(tensors: Sequence[Any]) -> Array:
            return np.concatenate([t.detach().numpy().reshape(-1) for t in tensors])

        out = {
            "theta": packed(parameters),
            "p": packed([optimizer.state[t][covariance] for t in parameters]),
        }
        if R is not None:
            out["R"] = np.array(optimizer.param_groups[0][noise].detach().numpy())
        return out

    def run(
        x: Array,
        y: Array,
        theta: Array,
        weights: Any,
        spec: Any,
        p: Array | None = None,
        P: Array | None = None,
        R: Array | None = None,
        **options: Any,
    ) -> Outputs:
        if p is None:
            raise NotImplementedError("a dense covariance")
        module, optimizer = start(spec, weights, theta, p, R, options)
        rows = []
        for xs, ys in zip(x, y, strict=True):  # one optimizer, which carries its own state
            step(optimizer, module, torch.from_numpy(xs.copy()), torch.from_numpy(ys.copy()))
            rows.append(read(module, spec, optimizer, R))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def one(x: Array, y: Array, **rest: Any) -> Outputs:
        return {name: value[0] for name, value in run(x[None], y[None], **rest).items()}

    return {"loko.step": one, "loko.run": run}


def from_step(
    step: Callable[..., Mapping[str, Any]],
    put: Callable[[Array], Any],
    get: Callable[[Any], Array] = np.asarray,
) -> dict[str, Callable[..., Outputs]]:
    """Return an implementation made from a pure step function.

    Parameters
    ----------
    step : callable
        Takes ``x, y, theta, weights, spec``, one of ``p, P``, possibly ``R``, and the options of
        ``loko.step`` as keywords; returns a mapping of its outputs, including theta and the state.
    put, get : callable
        From a NumPy array to the library's, and back: ``jax.numpy.asarray``, ``numpy.asarray``.

    Returns
    -------
    dict
        ``loko.step`` and ``loko.run``.
    """

    def one(weights: Mapping[str, Array], spec: Any, **keywords: Any) -> Outputs:
        arrays = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()}
        named = {name: put(value) for name, value in weights.items()}
        out = step(weights=named, spec=spec, **arrays)
        return {name: np.array(get(value)) for name, value in out.items()}

    return {"loko.step": one, "loko.run": _loop(one)}
