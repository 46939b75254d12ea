"""A user's torch module, in place of the package's: where its arrays are, and what is put there.

``names`` states where a weight of the spec stands in the user's code: for each last part of a name
(``W``, ``b``, ``A``, ``B``, ...) the attribute's path, ``{}`` standing for the layer's name in a
whole network; ``.T`` behind it where the user keeps the transpose.

    {"W": "base.weight", "b": "base.bias", "A": "lora_A", "B": "lora_B.weight.T"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import InputError, closest
from loko_ref.interop.torch_module import import_torch
from loko_ref.network.spec import factor_shapes, linears, param_shapes

NAMES = {"W": "weight", "b": "bias", "A": "lora_A", "B": "lora_B"}
"""Paths by default: those of a layer that is a linear itself."""


@dataclass(frozen=True, eq=False)
class Place:
    """One array of the user's module; `transposed` where it keeps the transpose."""

    tensor: Any
    transposed: bool

    def write(self, value: Array) -> None:
        """Put an array of the spec's shape there."""
        torch = import_torch()
        with torch.no_grad():
            self.tensor.copy_(self.turned(value))

    def read(self) -> Array:
        """Return it in the spec's shape."""
        return self.back(self.tensor)

    def turned(self, value: Array) -> Any:
        """Return an array of the spec's shape as a tensor of the user's shape."""
        return import_torch().from_numpy(np.array(value.T if self.transposed else value))

    def back(self, tensor: Any) -> Array:
        """Return a tensor of the user's shape, such as its variances, in the spec's shape."""
        value = np.array(tensor.detach().numpy())
        return value.T if self.transposed else value


def _find(module: Any, name: str, shape: tuple[int, ...], path: str) -> Place:
    """Return the array of a weight; raise where there is none, or one of another shape."""
    path, dot, turn = path.rpartition(".T")
    transposed = dot == ".T" and not turn
    path = path if transposed else path + dot + turn
    there = dict(module.named_parameters()) | dict(module.named_buffers())
    key = name.rsplit(".", 1)[1]
    if path not in there:
        near = closest(path, there)
        raise InputError(
            f"names[{key!r}]",
            f"{path!r}, which the module does not have (for {name})",
            f"one of {', '.join(there)}",
            f"another name; the closest is {near!r}" if near else "an array of another name",
        )
    found = tuple(there[path].shape)
    wanted = shape[::-1] if transposed else shape
    if found != wanted:
        other = found == wanted[::-1]
        hint = path if transposed else f"{path}.T"
        raise InputError(
            f"names[{key!r}]",
            f"{path!r} of shape {found} (for {name})",
            f"the shape {wanted}",
            f"the transpose is kept: write {hint!r}" if other else "another layer's array",
        )
    return Place(there[path], transposed)


def put(
    module: Any, spec: Any, weights: Mapping[str, Array], names: Mapping[str, str], *, whole: bool
) -> dict[str, Place]:
    """Put the weights of a case into a module that has layers of the user's.

    Parameters
    ----------
    module : torch.nn.Module
        The user's network, or one of ours with layers of the user's at the sites of LoRA.
    spec : list of dict
        The network.
    weights : mapping of str to array
        Every array by the spec's names; a frozen bias that the layer lacks is not among them.
    names : mapping of str to str
        Last part of a name -> path.
    whole : bool
        Whether the whole network is the user's; else its LoRA layers alone.

    Returns
    -------
    dict of str to Place
        Every array of the user's code, frozen ones too.

    Raises
    ------
    NotImplementedError
        If `names` has no entry for an array of the spec: the case is declined.
    InputError
        If the module has no such array, or it has another shape.
    """
    sites = {site["name"] for site in linears(spec) if site.get("lora")}
    shapes = factor_shapes(spec) | param_shapes(spec)
    places = {}
    for name, value in weights.items():
        site, key = name.rsplit(".", 1)
        if not whole and site not in sites:
            continue
        if key not in names:
            raise NotImplementedError(f"'names' has no entry {key!r}, which {name} needs")
        path = names[key].replace("{}", site) if whole else names[key]
        holder = module if whole else module.get_submodule(site)
        places[name] = _find(holder, name, shapes[name], path)
        places[name].write(value)
    return places
