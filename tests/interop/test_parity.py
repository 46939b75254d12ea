"""Random small classifiers of transformers, with peft's LoRA: logits and every factor's Jacobian.

float64. The bound is the issue's: 1e-11 of the norm of each array, factor by factor.
"""

import json
import logging
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'interop')")
logging.getLogger("transformers").setLevel(logging.ERROR)
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (extra 'interop')"
)
peft = pytest.importorskip("peft", reason="peft is not installed (extra 'interop')")

from loko_ref.errors import InputError  # noqa: E402
from loko_ref.interop import (  # noqa: E402
    load_adapter,
    load_classifier,
    read_tensors,
    save_adapter,
    write_tensors,
)
from loko_ref.interop.checkpoints import modules  # noqa: E402
from loko_ref.jacobian import jacobian  # noqa: E402
from loko_ref.model import forward, sites  # noqa: E402
from loko_ref.spec import walk  # noqa: E402

TOL = 1e-11
SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "num_labels": 3,
}
TEXT = {**SIZE, "vocab_size": 31, "max_position_embeddings": 12}
IMAGE = {**SIZE, "image_size": 8, "patch_size": 4, "num_channels": 2}
pytestmark = pytest.mark.filterwarnings("ignore")


def build(family, **options):
    torch.manual_seed(0)
    name = {"roberta": "Roberta", "bert": "Bert", "vit": "ViT", "deit": "DeiT"}[family]
    head = "SequenceClassification" if family in ("roberta", "bert") else "ImageClassification"
    config = getattr(transformers, f"{name}Config")(
        **{**(TEXT if family in ("roberta", "bert") else IMAGE), **options}
    )
    net = getattr(transformers, f"{name}For{head}")(config).double().eval()
    with torch.no_grad():  # biases and norms begin at 0 and 1: make every number matter
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def inputs(family, rng):
    if family in ("vit", "deit"):
        x = rng.standard_normal((2, 2, 8, 8))
        return x, {"pixel_values": torch.from_numpy(x)}
    pad = 1 if family == "roberta" else 0
    ids = rng.integers(2, 31, (3, 7))
    ids[1, 4:] = pad
    ids[2, 1:] = pad
    return ids, {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(ids != pad)}


def targets(family):
    return ["query", "value"] if family in ("roberta", "bert") else ["q_proj", "v_proj"]


CASES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {r"layers?\.1\..*(value|v_proj)": 4},
        "alpha_pattern": {"query": 3, "q_proj": 3},
    },
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.1\..*(key|k_proj|dense|fc1)"},
    "one layer": {"layers_to_transform": [1]},
    "bias of B": {"lora_bias": True},
    "biases of the sites": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
}


def adapt(net, family, seed=1, **options):
    config = {"r": 3, "lora_alpha": 5, "target_modules": targets(family), **options}
    tuned = peft.get_peft_model(net, peft.LoraConfig(**config)).double().eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn_like(p))
            elif "bias" in options and p.requires_grad and "original_module" not in name:
                p.add_(0.3 * torch.randn_like(p))  # the base was saved before
    return tuned


def reference(tuned, args):
    """Logits and, for each trainable, the Jacobian (samples * C, size)."""
    chosen = {k: p for k, p in tuned.named_parameters() if p.requires_grad}
    z = tuned(**args).logits
    rows = []
    for value in z.reshape(-1):
        grads = torch.autograd.grad(
            value, list(chosen.values()), retain_graph=True, allow_unused=True
        )
        zero = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(grads, chosen.values(), strict=True)
        ]
        rows.append([g.reshape(-1).numpy() for g in zero])
    stacked = [np.stack(parts) for parts in zip(*rows, strict=True)]
    return z.detach().numpy(), dict(zip(chosen, stacked, strict=True))


def compare(checkpoint, x, z_ref, J_ref):
    model = checkpoint.model
    z, Z = jacobian(model, x)
    assert np.linalg.norm(z - z_ref) <= TOL * np.linalg.norm(z_ref)
    names = modules(checkpoint.family, SIZE["num_hidden_layers"])
    part = {
        "A": "lora_A.default.weight",
        "B": "lora_B.default.weight",
        "bB": "lora_B.default.bias",
        "W": "weight",
        "b": "bias",
    }
    copies = {k: v for k, v in J_ref.items() if "original_module" not in k}
    flat = {re.sub(r"(modules_to_save\.default|base_layer)\.", "", k): v for k, v in copies.items()}
    assert len(flat) == len(model.trainable)
    at = 0
    for full in model.trainable:
        ours, key = full.rsplit(".", 1)
        ends = tuple(f".{m}.{part[key]}" for m in names[ours])
        (expected,) = (v for k, v in flat.items() if k.endswith(ends))
        size = model.weights[full].size
        got, scale = Z[:, at : at + size], np.linalg.norm(expected)
        if full.endswith(".k.b"):  # adds the same to all scores of a query: 0 but for rounding
            scale = np.linalg.norm(Z)
            assert np.linalg.norm(expected) <= TOL * scale
        assert np.linalg.norm(got - expected) <= TOL * scale, full
        at += size
    assert at == model.n


@pytest.mark.parametrize("family", ["roberta", "bert", "vit", "deit"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_jacobian(family, case, tmp_path, rng):
    net = build(family)
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, family, **CASES[case])
    tuned.save_pretrained(tmp_path / "adapter")
    base = load_classifier(tmp_path / "base")
    checkpoint = load_adapter(base, tmp_path / "adapter")
    x, args = inputs(family, rng)
    compare(checkpoint, x, *reference(tuned, args))


@pytest.mark.parametrize("family", ["roberta", "vit"])
@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations(family, act, tmp_path, rng):
    net = build(family, hidden_act=act)
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, family)
    tuned.save_pretrained(tmp_path / "adapter")
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    kinds = {layer["kind"] for _, layer in walk(checkpoint.model.spec)}
    assert ("relu" if act == "relu" else "gelu_tanh") in kinds
    x, args = inputs(family, rng)
    compare(checkpoint, x, *reference(tuned, args))


@pytest.mark.parametrize("family", ["roberta", "bert", "vit"])
def test_head_among_the_trainables(family, tmp_path, rng):
    net = build(family)
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, family, modules_to_save=["classifier"])
    tuned.save_pretrained(tmp_path / "adapter")
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    assert "head.out.W" in checkpoint.model.trainable
    assert [s for s, _, _ in sites(checkpoint.model)][-1] == "head.out"
    x, args = inputs(family, rng)
    compare(checkpoint, x, *reference(tuned, args))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["projection", "q_proj"], "bias": "all"},
        {"target_modules": ["q_proj"], "modules_to_save": ["projection"]},
    ],
)
def test_the_convolution_of_the_patches(options, tmp_path, rng):
    """Its LoRA is two convolutions, and its weight has four axes; written back as such."""
    net = build("vit")
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, "vit", **options)
    tuned.save_pretrained(tmp_path / "adapter")
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    assert any(name.startswith("patch.") for name in checkpoint.model.trainable)
    x, args = inputs("vit", rng)
    compare(checkpoint, x, *reference(tuned, args))
    save_adapter(checkpoint, tmp_path / "written")
    written = peft.PeftModel.from_pretrained(build("vit"), tmp_path / "written").double().eval()
    z = forward(checkpoint.model, x)[0]
    with torch.no_grad():
        assert np.linalg.norm(written(**args).logits.numpy() - z) <= TOL * np.linalg.norm(z)


def test_an_adapter_that_changes_the_base_is_refused(tmp_path):
    """PiSSA takes the largest singular values out of the weight, at each loading."""
    net = build("roberta").float()
    net.save_pretrained(tmp_path / "base")
    adapt(net, "roberta", init_lora_weights="pissa").save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="init_lora_weights: got 'pissa'"):
        load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.parametrize("family", ["roberta", "bert", "vit", "deit"])
@pytest.mark.parametrize(
    "case",
    ["plain", "rslora", "patterns", "bias of B", "biases of the sites", "all biases"],
)
def test_peft_loads_what_is_written(family, case, tmp_path, rng):
    net = build(family)
    net.save_pretrained(tmp_path / "base")
    adapt(net, family, modules_to_save=["classifier"], **CASES[case]).save_pretrained(
        tmp_path / "adapter"
    )
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    save_adapter(checkpoint, tmp_path / "written")
    again = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "written")
    x, args = inputs(family, rng)
    z = forward(checkpoint.model, x)[0]
    assert np.linalg.norm(forward(again.model, x)[0] - z) <= TOL * np.linalg.norm(z)
    fresh = build(family)
    tuned = peft.PeftModel.from_pretrained(fresh, tmp_path / "written").double().eval()
    with torch.no_grad():
        expected = tuned(**args).logits.numpy()
    # peft keeps adapters in the base's dtype, float64 here
    assert np.linalg.norm(z - expected) <= TOL * np.linalg.norm(expected)


def test_both_namings_of_vit(tmp_path, rng):
    """A file with transformers 5's names in memory, and an adapter with transformers 4's."""
    net = build("vit")
    net.save_pretrained(tmp_path / "base")
    old = load_classifier(tmp_path / "base")
    assert any(
        "attention.attention.query" in k for k in read_tensors(tmp_path / "base/model.safetensors")
    )
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.json").write_text((tmp_path / "base/config.json").read_text())
    state = {k: v.numpy() for k, v in net.state_dict().items()}
    assert any("attention.q_proj" in k for k in state)
    write_tensors(new / "model.safetensors", state)
    x, args = inputs("vit", rng)
    assert (forward(old.model, x)[0] == forward(load_classifier(new).model, x)[0]).all()

    tuned = adapt(net, "vit")
    tuned.save_pretrained(tmp_path / "adapter")
    checkpoint = load_adapter(old, tmp_path / "adapter")
    save_adapter(checkpoint, tmp_path / "four", generation=4)
    config = json.loads((tmp_path / "four/adapter_config.json").read_text())
    assert all("attention.attention" in name for name in config["target_modules"])
    again = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "four")
    compare(again, x, *reference(tuned, args))


def test_mask_and_types_as_channels(tmp_path, rng):
    net = build("bert")
    net.save_pretrained(tmp_path / "base")
    base = load_classifier(tmp_path / "base", inputs=("ids", "types", "mask"))
    ids, types = rng.integers(1, 31, (2, 6)), rng.integers(0, 2, (2, 6))
    mask = np.array([[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        z = net(
            input_ids=torch.from_numpy(ids),
            token_type_ids=torch.from_numpy(types),
            attention_mask=torch.from_numpy(mask),
        ).logits.numpy()
    got = forward(base.model, np.stack([ids, types, mask], axis=1))[0]
    assert np.linalg.norm(got - z) <= TOL * np.linalg.norm(z)


def test_fresh_head_on_a_bare_encoder(tmp_path):
    net = build("roberta")
    net.roberta.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "roberta"
    model = load_classifier(tmp_path, outputs=5, head=np.random.default_rng(0)).model
    assert model.outputs == 5
    token = net.roberta.embeddings.word_embeddings.weight.detach().numpy()
    assert (model.weights["emb.token"] == token).all()
