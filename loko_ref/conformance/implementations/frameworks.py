"""Adapters for torch (optimizer, LoRA layer, network), and for a pure step function.

``from_torch`` makes ``loko.step`` and ``loko.run`` from an optimizer, and what tests a layer or a
network from the user's own; ``from_step`` from a pure function in any library whose arrays NumPy
can read (JAX, torch.func, CuPy through ``get``). A library is imported only when it is used.

Shapes as in ``loko-ref operations``; parameters of a module have the names of weights ("0.A").
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import InputError
from loko_ref.interop.torch_module import build_module, import_torch
from loko_ref.interop.torch_own import NAMES, Place, put
from loko_ref.network.spec import factor_shapes

__all__ = ["Adapted", "build_module", "from_step", "from_torch"]

Outputs = dict[str, Any]


def _loop(step: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Return ``loko.run`` made from ``loko.step``: each step starts from the previous state."""

    def run(x: Array, y: Array, theta: Array, **rest: Any) -> Outputs:
        state = {name: rest.pop(name) for name in ("p", "P", "U", "W", "R") if name in rest}
        rows = []
        for xs, ys in zip(x, y, strict=True):
            rows.append(step(x=xs, y=ys, theta=theta, **state, **rest))
            theta = rows[-1]["theta"]
            state = {name: rows[-1][name] for name in state}
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return run


class Adapted(dict[str, Callable[..., Outputs]]):
    """An implementation with notes for the report: what of the user's code it covers."""

    def __init__(self, functions: Mapping[str, Callable[..., Outputs]], *notes: str) -> None:
        super().__init__(functions)
        self.notes = notes


@dataclass(frozen=True, eq=False)
class _Torch:
    """What :func:`from_torch` was given: how a network of a case is built and stepped."""

    make: Callable[[Any, dict[str, Any]], Any] | None
    advance: Callable[[Any, Any, Any, Any], Any] | None
    lora: Callable[[dict[str, Any]], Any] | None
    module: Callable[[Any], Any] | None
    names: Mapping[str, str]
    covariance: str
    noise: str

    def build(self, spec: Any, weights: Mapping[str, Array]) -> tuple[Any, dict[str, Place]]:
        """Return the network with a case's weights in it, and where they are."""
        dtype = import_torch().from_numpy(np.empty(0, next(iter(weights.values())).dtype)).dtype
        if self.module is not None:
            network = self.module(copy.deepcopy(spec)).to(dtype)
            return network, put(network, spec, weights, self.names, whole=True)
        network = build_module(spec, weights, self.lora).to(dtype)
        places = {}
        if self.lora is not None:
            places = put(network, spec, weights, self.names, whole=False)
        ours = {name: network.get_parameter(name) for name in factor_shapes(spec).keys() - places}
        return network, places | {name: Place(tensor, False) for name, tensor in ours.items()}

    def step(self, x: Array, y: Array, **rest: Any) -> Outputs:
        """Return the outputs of one step of LoKO."""
        out = self.run(x[None], y[None], **rest)
        return {name: value[0] for name, value in out.items()}

    def run(
        self,
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
        """Return the outputs of every step of LoKO."""
        if p is None:
            raise NotImplementedError("a covariance other than a diagonal")
        if options.get("train", "factors") != "factors":
            raise NotImplementedError("weights other than LoRA's factors are trained")
        if self.make is None or self.advance is None:
            raise NotImplementedError("no optimizer was given: from_torch(make, step)")
        torch = import_torch()
        shapes, ends = factor_shapes(spec), np.cumsum([0, *_sizes(spec)])
        spans = [slice(*ends[k : k + 2]) for k in range(len(shapes))]
        pieces = {
            name: (theta[span].reshape(shape), p[span].reshape(shape))
            for (name, shape), span in zip(shapes.items(), spans, strict=True)
        }
        start = {**weights, **{name: mean for name, (mean, _) in pieces.items()}}
        module, places = self.build(spec, start)
        optimizer = self.make(module, options)
        for name, (_, variances) in pieces.items():
            place = places[name]
            optimizer.state[place.tensor][self.covariance] = place.turned(variances)
        if R is not None:
            optimizer.param_groups[0][self.noise] = torch.from_numpy(R.copy())
        rows = []
        for xs, ys in zip(x, y, strict=True):  # one optimizer, which carries its own state
            self.advance(
                optimizer, module, torch.from_numpy(xs.copy()), torch.from_numpy(ys.copy())
            )
            factors = [places[name] for name in shapes]
            spread = [o.back(optimizer.state[o.tensor][self.covariance]) for o in factors]
            row = {"theta": _packed([o.read() for o in factors]), "p": _packed(spread)}
            if R is not None:
                row["R"] = np.array(optimizer.param_groups[0][self.noise].detach().numpy())
            rows.append(row)
        for name in places.keys() - pieces:
            if not np.array_equal(places[name].read(), weights[name]):
                raise ValueError(f"the step has changed {name}, which is frozen")
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def forward(self, x: Array, weights: Any, spec: Any) -> Outputs:
        """Return the outputs of the network."""
        module, _ = self.build(spec, weights)
        return {"z": module(import_torch().from_numpy(x.copy())).detach().numpy()}

    def jacobian(self, x: Array, weights: Any, spec: Any, train: str = "factors") -> Outputs:
        """Return the outputs, and by autograd their Jacobian: a backward pass per output."""
        if train != "factors":
            raise NotImplementedError("the Jacobian with respect to other weights than factors")
        torch = import_torch()
        module, places = self.build(spec, weights)
        z = module(torch.from_numpy(x.copy()))
        factors = [places[name] for name in factor_shapes(spec)]
        tensors = [place.tensor for place in factors]
        rows = []
        for one in z.reshape(-1):
            parts = torch.autograd.grad(one, tensors, retain_graph=True, materialize_grads=True)
            back = [place.back(part) for place, part in zip(factors, parts, strict=True)]
            rows.append(_packed(back))
        return {"z": z.detach().numpy(), "Z": np.stack(rows)}

    def delta(self, A: Array, B: Array, alpha: float) -> Outputs:
        """Return what a layer adds to W: its outputs for the rows of the identity, at W = 0."""
        module, _ = self.build(*_layer(A, B, alpha))
        eye = import_torch().from_numpy(np.eye(A.shape[1], dtype=A.dtype))
        return {"delta": module(eye).detach().numpy().T}


def _layer(A: Array, B: Array, alpha: float) -> tuple[Any, dict[str, Array]]:
    """Return the spec and the weights of one layer with LoRA on W = 0."""
    (r, i), o = A.shape, B.shape[0]
    lora = {"r": r, "alpha": alpha}
    spec = [{"kind": "linear", "name": "0", "in": i, "out": o, "bias": False, "lora": lora}]
    return spec, {"0.W": np.zeros((o, i), A.dtype), "0.A": A, "0.B": B}


def _sizes(spec: Any) -> list[int]:
    return [math.prod(shape) for shape in factor_shapes(spec).values()]


def _packed(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(array).reshape(-1) for array in arrays])


def from_torch(
    make: Callable[[Any, dict[str, Any]], Any] | None = None,
    step: Callable[[Any, Any, Any, Any], Any] | None = None,
    *,
    lora: Callable[[dict[str, Any]], Any] | None = None,
    module: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] = NAMES,
    covariance: str = "p",
    noise: str = "R",
) -> Adapted:
    """Return an implementation made from a torch optimizer, a LoRA layer, a network, or several.

    Without `lora` and `module` every network of the cases is made of the package's own layers, and
    the optimizer alone is tested. With `lora`, the user's layer stands at every linear with LoRA;
    with `module`, the whole network is the user's. Neither covers: merging into W, the
    initialization of A and B, data loading, a dense covariance.

    Parameters
    ----------
    make : callable, optional
        ``(module, options) -> optimizer``; raises NotImplementedError for options it lacks.
    step : callable, optional
        ``(optimizer, module, x, y)``: one step, in place; x (batch, ...), y (batch, C).
    lora : callable, optional
        ``(layer) -> torch.nn.Module``: the user's layer for one entry of a spec: ``layer["in"]``,
        ``layer["out"]``, ``layer["bias"]``, ``layer["lora"]["r"]``, ``layer["lora"]["alpha"]``.
    module : callable, optional
        ``(spec) -> torch.nn.Module``: the user's network for a whole spec, in place of `lora`;
        raises NotImplementedError for a spec that it has no network for.
    names : mapping of str to str
        Where W, b, A and B are in the user's layer (``{"A": "lora_A.weight"}``), ``.T`` behind the
        path of a transposed one; for `module` with ``{}`` for the layer's name.
    covariance : str
        Key of a parameter's variances in ``optimizer.state[parameter]``.
    noise : str
        Key of R in ``optimizer.param_groups[0]``.

    Returns
    -------
    dict
        ``loko.step`` and ``loko.run``, which return theta, p and R, with `make` and `step`;
        ``model.forward``, ``model.jacobian`` (by autograd) and ``lora.delta`` with `lora` or
        `module`. Its ``notes`` say in the report what is covered.

    Raises
    ------
    InputError
        If nothing is given, `make` without `step` or the reverse, `lora` beside `module`, or where
        `names` does not fit the layer.
    """
    import_torch()
    if (make is None) != (step is None):
        got = "make alone" if step is None else "step alone"
        raise InputError("from_torch", got, "make and step", "an argument that was left out")
    if lora is not None and module is not None:
        required, cause = "one of them", "a network has its own LoRA layers"
        raise InputError("from_torch", "lora and module", required, cause)
    if make is None and lora is None and module is None:
        required = "make and step, lora or module"
        raise InputError("from_torch", "nothing to test", required, "arguments that were left out")
    torch = _Torch(make, step, lora, module, {**NAMES, **names}, covariance, noise)
    if lora is not None:
        with contextlib.suppress(NotImplementedError):  # a scaffold that is not filled in
            torch.build(*_layer(np.ones((1, 3)), np.ones((2, 1)), 1.0))  # raises what does not fit
    functions: dict[str, Callable[..., Outputs]] = {}
    if lora is not None or module is not None:
        functions |= {"model.forward": torch.forward, "model.jacobian": torch.jacobian}
        functions |= {"lora.delta": torch.delta}
    if make is not None:
        functions |= {"loko.step": torch.step, "loko.run": torch.run}
    if lora is not None:
        whose = "your LoRA layer in networks of loko_ref's other layers"
    elif module is not None:
        whose = "your own network"
    else:
        whose = "your optimizer on networks of loko_ref's layers: your LoRA layer is not tested"
        whose += " (from_torch(..., lora=...) takes it)"
    more = "merging into W, initialization, dense covariances, the data"
    return Adapted(functions, f"torch: covered is {whose}; not covered: {more}")


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
