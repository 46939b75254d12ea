"""H and Z against torch.func: jacrev through functional_call, factor by factor, in float64.

The networks are torch modules written here from torch's own functional operations, which know
nothing of the package but a spec and its weights: a multilayer perceptron, encoders of both orders,
a vision transformer (patches by a convolution) and RoBERTa (padding by torch's mask); then
transformers' own models with peft's LoRA. The bound is 1e-11 of the norm of each array.
"""

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'interop')")

from torch import nn  # noqa: E402
from torch.func import functional_call, jacrev  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from loko_ref import loko  # noqa: E402
from loko_ref.interop import load_adapter, load_classifier  # noqa: E402
from loko_ref.interop.families import modules  # noqa: E402
from loko_ref.network.architectures import encoder_spec, roberta_spec, vit_spec  # noqa: E402
from loko_ref.network.jacobian import jacobian  # noqa: E402
from loko_ref.network.model import Model, forward, mlp_spec, param_shapes, sites  # noqa: E402

TOL = 1e-11
LORA = {"r": 2, "alpha": 3.0}
BIASED = {**LORA, "bias": True}
SIZE = {"layers": 2, "width": 12, "heads": 3, "ff": 20, "outputs": 3, "lora": LORA}
ALL = ("q", "k", "v", "o", "f1", "f2")
SPECS = {
    "mlp": mlp_spec([6, 9, 8, 4], "relu", LORA),
    "mlp gelu biased": mlp_spec([6, 9, 4], "gelu", BIASED),
    "mlp gelu_tanh": mlp_spec([6, 9, 4], "gelu_tanh", LORA),
    "transformer post-norm": encoder_spec(**SIZE, norm="post", targets=ALL),
    "transformer pre-norm": encoder_spec(**{**SIZE, "lora": BIASED}, norm="pre", pool="cls"),
    "transformer causal": encoder_spec(**SIZE, causal=True, activation="gelu_tanh", dense=True),
    "vit": vit_spec(image=(2, 8, 8), patch=(4, 4), targets=ALL, **SIZE),
    "roberta": roberta_spec(vocab=31, positions=12, **SIZE),
}
ACTIVATIONS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Peer(nn.Module):
    """The network of a spec, in torch's words; a weight ``0.q.A`` is the parameter ``0_q_A``."""

    def __init__(self, model):
        super().__init__()
        self.spec = model.spec
        self.named = nn.ParameterDict(
            {k.replace(".", "_"): nn.Parameter(torch.tensor(w)) for k, w in model.weights.items()}
        )

    def weight(self, *name):
        return self.named["_".join(name)]

    def linear(self, x, layer, name):
        bias = self.weight(name, "b") if layer.get("bias", True) else None
        y = F.linear(x, self.weight(name, "W"), bias)
        site = layer.get("lora")
        if not site:
            return y
        shifts = [self.weight(name, k) if site.get("bias") else None for k in ("bA", "bB")]
        u = F.linear(x, self.weight(name, "A"), shifts[0])
        v = F.linear(u, self.weight(name, "B"), shifts[1])
        return y + site["alpha"] / site["r"] * v

    def attention(self, x, layer, mask):
        name = layer["name"]
        parts = [self.linear(x, layer[k], f"{name}_{k}") for k in "qkv"]
        heads = [p.unflatten(-1, (layer["heads"], -1)).transpose(-2, -3) for p in parts]
        see = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(
            *heads, attn_mask=see, is_causal=layer.get("causal", False)
        )
        return self.linear(y.transpose(-2, -3).flatten(-2), layer["o"], f"{name}_o")

    def embed(self, x, layer):
        real = x != layer["pad"]
        at = torch.cumsum(real, dim=1) * real + layer["pad"]
        y = F.embedding(x, self.weight("emb", "token"))
        y = y + F.embedding(at, self.weight("emb", "position"))
        return y + self.weight("emb", "type")[0], real

    def forward(self, x):
        return self.run(x, self.spec, None)[0]

    def run(self, x, layers, mask):
        for layer in layers:
            kind, name = layer["kind"], layer.get("name", "")
            if kind == "linear" and name == "patch":
                continue  # the convolution before was it
            if kind == "linear":
                x = self.linear(x, layer, name.replace(".", "_"))
            elif kind in ACTIVATIONS:
                x = ACTIVATIONS[kind](x)
            elif kind == "layernorm":
                own = name.replace(".", "_")
                scale = (self.weight(own, "g"), self.weight(own, "b"))
                x = F.layer_norm(x, (layer["width"],), *scale, eps=layer["eps"])
            elif kind == "residual":
                x = x + self.run(x, layer["layers"], mask)[0]
            elif kind == "attention":
                x = self.attention(x, layer, mask)
            elif kind == "embedding":
                x, mask = self.embed(x, layer)
            elif kind == "patchify":
                (channels, _, _), (h, w) = layer["image"], layer["patch"]
                kernel = self.weight("patch", "W").reshape(-1, channels, h, w)
                x = F.conv2d(x, kernel, self.weight("patch", "b"), stride=(h, w))
                x = x.flatten(2).transpose(1, 2)
            elif kind == "prepend":
                x = torch.cat([self.weight("cls", "token").expand(len(x), -1, -1), x], dim=1)
            elif kind == "positions":
                x = x + self.weight("pos", "position")
            elif layer["how"] == "cls":
                x = x[:, 0]
            else:
                x = x.mean(dim=1)
        return x, mask


def draw(spec, rng):
    weights = {k: 0.5 * rng.standard_normal(s) for k, s in param_shapes(spec).items()}
    return Model(spec=spec, weights=weights)


def inputs(spec, rng, batch=2):
    first = spec[0]
    if first["kind"] == "embedding":
        ids = rng.integers(2, 31, (batch, 7))
        ids[-1, 4:] = first["pad"]
        return ids
    shape = {"patchify": (2, 8, 8), "linear": (6,)}.get(first["kind"], (5, 12))
    return rng.standard_normal((batch, *shape))


def close(got, expected, name):
    off, size = np.linalg.norm(got - expected), np.linalg.norm(expected)
    assert size > 0, f"{name}: nothing to compare"
    assert off <= TOL * size, f"{name}: off by {off / size:.1e} of its norm"


def jacobians(net, chosen, function):
    """jacrev of a function of the parameters `chosen`: (rows, size) of each, by its name."""
    found = jacrev(function, chunk_size=1)(chosen)
    rows = function(chosen).numel()
    return {k: J.detach().reshape(rows, -1).numpy() for k, J in found.items()}


@pytest.mark.parametrize("name", SPECS)
def test_jacobians_by_torch_func(name, rng):
    spec = SPECS[name]
    model, x = draw(spec, rng), inputs(spec, rng)
    net = Peer(model)
    keys = {f"named.{k.replace('.', '_')}": k for k in model.trainable}
    chosen = {k: p.detach() for k, p in net.named_parameters() if k in keys}
    assert len(chosen) == len(model.trainable)
    run = lambda some: functional_call(net, some, (torch.from_numpy(x),))  # noqa: E731

    z, Z = jacobian(model, x)
    close(z, run(chosen).detach().numpy(), "z")
    wanted = {keys[k]: J for k, J in jacobians(net, chosen, run).items()}
    spans = {}
    for _, parts, span in sites(model):
        at = span.start
        for part in parts:
            spans[part] = slice(at, at + model.weights[part].size)
            at = spans[part].stop
    assert spans.keys() == wanted.keys()
    for part, J in wanted.items():
        close(Z[:, spans[part]], J, f"Z, {part}")

    # H of the step, in each model of classes: of the probabilities, or of the logits
    probabilities = jacobians(net, chosen, lambda some: torch.softmax(run(some), dim=-1))
    H_softmax = {keys[k]: J for k, J in probabilities.items()}
    batch = loko.Batch(x=x, y=rng.integers(0, model.outputs, len(x)))
    for observation, H in (("softmax", H_softmax), ("glm", H_softmax), ("logits", wanted)):
        config = loko.LokoConfig(model=model, observation=observation)
        _, record = loko.step(loko.init(config, batch=len(x)), batch, config)
        for part, J in H.items():
            close(record.H[:, spans[part]], J, f"H, {observation}, {part}")


FAMILIES = ("roberta", "bert", "vit")


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_models_by_torch_func(family, tmp_path, rng):
    """The published modules themselves, with peft's LoRA, without a line of ours in between."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    pytest.importorskip("transformers", reason="transformers is not installed (extra 'interop')")
    pytest.importorskip("peft", reason="peft is not installed (extra 'interop')")
    from test_parity import adapt, build
    from test_parity import inputs as arguments

    net = build(family)
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, family)
    tuned.save_pretrained(tmp_path / "adapter")
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    model = checkpoint.model
    x, args = arguments(family, rng)
    chosen = {k: p.detach() for k, p in tuned.named_parameters() if p.requires_grad}
    run = lambda some: functional_call(tuned, some, (), kwargs=args).logits  # noqa: E731
    close(forward(model, x)[0], run(chosen).detach().numpy(), "z")
    wanted = jacobians(tuned, chosen, run)
    _, Z = jacobian(model, x)
    theirs = modules(family, 2)
    at = 0
    for part in model.trainable:
        ours, factor = part.rsplit(".", 1)
        found = [
            J
            for k, J in wanted.items()
            if f".lora_{factor}." in k and any(f".{name}." in k for name in theirs[ours])
        ]
        assert len(found) == 1, part
        size = model.weights[part].size
        close(Z[:, at : at + size], found[0], part)
        at += size
