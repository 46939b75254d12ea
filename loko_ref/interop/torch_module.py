"""A spec as a torch module: what is frozen as buffers, LoRA factors as parameters.

Written in torch's own functions, apart from the package's layers. torch is imported when a module
is built.

Shapes: x as the spec's first layer takes it (token ids as floats, as cases carry them);
mask (batch, t), true where a token is real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import extras
from loko_ref.network.layers import Layer, option
from loko_ref.network.spec import Spec, check_spec, factor_shapes, linears, param_shapes


def import_torch() -> Any:
    """Import torch; raise with the extra that brings it where it is missing."""
    return extras.load("torch", "verifying a torch optimizer")


def build_module(
    spec: Spec, weights: Mapping[str, Array], linear: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Build a ``torch.nn.Module`` of a spec: LoRA factors as parameters, all else as buffers.

    Every linear is a module with a ``forward`` of its own, at the place of its name:
    ``module.get_submodule("0.q")``.

    Parameters
    ----------
    spec : list of dict
        As the option ``spec``, nested or not.
    weights : mapping of str to array
        Frozen ones, and factors where given (else 0).
    linear : callable, optional
        ``(layer) -> torch.nn.Module`` that takes the place of a linear with LoRA; its arrays are
        left as it makes them (:func:`loko_ref.interop.torch_own.put`).

    Returns
    -------
    torch.nn.Module
        ``named_parameters()`` gives "0.A", "0.B", ... by the names of the weights. The order is
        that of packing (:func:`loko_ref.network.spec.factor_shapes`) unless names with a common
        first part are apart.

    Raises
    ------
    InputError
        If the spec is faulty.
    """
    check_spec(spec)
    torch = import_torch()
    nn, functional = torch.nn, torch.nn.functional
    shapes = factor_shapes(spec)

    def tensor(name: str) -> Any:
        value = weights.get(name)
        return None if value is None else torch.from_numpy(np.array(value))

    class Linear(nn.Module):  # type: ignore[misc, name-defined]
        """y = W x + b + scale (B (A x + bA) + bB)."""

        def __init__(self, layer: Layer) -> None:
            super().__init__()
            name = layer["name"]
            for key in ("W", "b"):
                self.register_buffer(key, tensor(f"{name}.{key}"))
            self.scale = 0.0
            if layer.get("lora"):
                self.scale = layer["lora"]["alpha"] / layer["lora"]["r"]
            for key in ("A", "B", "bA", "bB"):
                shape = shapes.get(f"{name}.{key}")
                if shape is not None:
                    value = tensor(f"{name}.{key}")
                    value = torch.zeros(shape, dtype=self.W.dtype) if value is None else value
                    self.register_parameter(key, nn.Parameter(value))

        def forward(self, x: Any) -> Any:
            y = functional.linear(x, self.W, self.b)
            if self.scale == 0.0:
                return y
            u = functional.linear(x, self.A, getattr(self, "bA", None))
            return y + self.scale * functional.linear(u, self.B, getattr(self, "bB", None))

    class Frozen(nn.Module):  # type: ignore[misc, name-defined]
        """The arrays of a norm or a table, as buffers ``its_g``, ``its_token``, ..."""

        def __init__(self, layer: Layer) -> None:
            super().__init__()
            for name in param_shapes([layer]):
                self.register_buffer("its_" + name.rsplit(".", 1)[1], tensor(name))

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        """The layers in order; their modules by name."""

        def forward(self, x: Any) -> Any:
            return run(self, spec, x, None)[0]

    def run(network: Any, layers: Spec, x: Any, mask: Any) -> tuple[Any, Any]:
        for layer in layers:
            kind = layer["kind"]
            if kind == "residual":
                x = x + run(network, layer["layers"], x, mask)[0]
            elif kind == "attention":
                x = attention(network, layer, x, mask)
            elif kind == "linear":
                x = network.get_submodule(layer["name"])(x)
            elif kind in plain:
                x = plain[kind](x)
            else:
                own = network.get_submodule(layer["name"]) if "name" in layer else None
                x, mask = ends[kind](own, layer, x, mask)
        return x, mask

    def attention(network: Any, layer: Layer, x: Any, mask: Any) -> Any:
        def by_heads(key: str) -> Any:
            y = network.get_submodule(f"{layer['name']}.{key}")(x)
            return y.unflatten(-1, (layer["heads"], -1)).transpose(-3, -2)

        q, k, v = map(by_heads, "qkv")
        t = x.shape[-2]
        see = torch.ones(t, t, dtype=torch.bool)
        if layer.get("causal"):
            see = see.tril()
        if mask is not None:
            see = see & mask[:, None, None, :]
        s = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        s = s.masked_fill(~see, torch.finfo(s.dtype).min)
        a = torch.softmax(s, dim=-1) * see  # a query that sees nothing gives 0
        y = (a @ v).transpose(-3, -2).flatten(-2)
        return network.get_submodule(f"{layer['name']}.o")(y)

    def layernorm(own: Any, layer: Layer, x: Any, mask: Any) -> Any:
        g, b = getattr(own, "its_g", None), getattr(own, "its_b", None)
        return functional.layer_norm(x, (layer["width"],), g, b, option(layer, "eps")), mask

    def embedding(own: Any, layer: Layer, x: Any, mask: Any) -> Any:
        inputs = layer.get("inputs") or ["ids"]
        channel = dict(zip(inputs, x.long().reshape(len(x), len(inputs), -1).unbind(1)))  # noqa: B905
        ids, pad, start = channel["ids"], layer.get("pad"), layer.get("start")
        real = torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad
        if "mask" in channel:
            mask = channel["mask"] != 0
        elif pad is not None:
            mask = real
        at = torch.arange(ids.shape[1])
        if start is not None:
            at = start + real.cumsum(1) * real
        y = functional.embedding(ids, own.its_token) + functional.embedding(at, own.its_position)
        if layer.get("types"):
            types = channel.get("types", torch.zeros_like(ids))
            y = y + functional.embedding(types, own.its_type)
        return y, mask

    def patchify(own: Any, layer: Layer, x: Any, mask: Any) -> Any:
        image = x.reshape(len(x), *layer["image"])
        patch = tuple(layer["patch"])
        return functional.unfold(image, patch, stride=patch).transpose(1, 2), mask

    def prepend(own: Any, layer: Layer, x: Any, mask: Any) -> Any:
        token = own.its_token.expand(len(x), -1, -1)
        if mask is not None:
            mask = torch.cat([torch.ones(token.shape[:2], dtype=torch.bool), mask], dim=1)
        return torch.cat([token, x], dim=1), mask

    def positions(own: Any, layer: Layer, x: Any, mask: Any) -> Any:
        return x + own.its_position[: x.shape[1]], mask

    def pool(own: Any, layer: Layer, x: Any, mask: Any) -> Any:
        if layer["how"] == "cls":
            return x[:, 0], mask
        if mask is None:
            return x.mean(1), mask
        real = mask.unsqueeze(-1).to(x.dtype)
        return (x * real).sum(1) / real.sum(1), mask

    plain = {
        "relu": functional.relu,
        "tanh": torch.tanh,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "softmax": lambda x: torch.softmax(x, dim=-1),
        "log_softmax": lambda x: torch.log_softmax(x, dim=-1),
    }
    ends = {
        "layernorm": layernorm,
        "embedding": embedding,
        "patchify": patchify,
        "prepend": prepend,
        "positions": positions,
        "pool": pool,
    }

    def named(layers: Spec) -> Any:
        """Yield the module of every named layer, in model order."""
        for layer in layers:
            if layer["kind"] == "residual":
                yield from named(layer["layers"])
            elif layer["kind"] in ("linear", "attention"):
                for site in linears([layer]):
                    if linear is not None and site.get("lora"):
                        yield site["name"], linear({"bias": True, **site})
                    else:
                        yield site["name"], Linear(site)
            elif "name" in layer:
                yield layer["name"], Frozen(layer)

    modules = dict(named(spec))
    network = Network()
    for name in modules:
        place, path = network, ""
        for key in name.split("."):
            path = f"{path}.{key}" if path else key
            if key not in dict(place.named_children()):
                place.add_module(key, modules.get(path, nn.Module()))
            place = place.get_submodule(key)
    return network
