"""Random small classifiers of transformers with peft's LoRA: their logits and Jacobians."""

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

from loko_ref.interop.families import modules, tables  # noqa: E402
from loko_ref.network.jacobian import jacobian  # noqa: E402
from loko_ref.network.model import forward  # noqa: E402

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
DISTIL = {
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "num_labels": 3,
    "vocab_size": 31,
    "max_position_embeddings": 12,
}
FAMILIES = {
    "roberta": ("Roberta", TEXT),
    "xlm-roberta": ("XLMRoberta", TEXT),
    "camembert": ("Camembert", TEXT),
    "bert": ("Bert", TEXT),
    "distilbert": ("DistilBert", DISTIL),
    "vit": ("ViT", IMAGE),
    "deit": ("DeiT", IMAGE),
}
PADS = {"roberta": 1, "xlm-roberta": 1, "camembert": 1, "bert": 0, "distilbert": 0}
TARGETS = {
    "vit": ["q_proj", "v_proj"],
    "deit": ["q_proj", "v_proj"],
    "distilbert": ["q_lin", "v_lin"],
}


def build(family, **options):
    torch.manual_seed(0)
    name, size = FAMILIES[family]
    head = "SequenceClassification" if family in PADS else "ImageClassification"
    config = getattr(transformers, f"{name}Config")(**{**size, **options})
    net = getattr(transformers, f"{name}For{head}")(config).double().eval()
    with torch.no_grad():  # biases and norms begin at 0 and 1: make every number matter
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def inputs(family, rng):
    if family not in PADS:
        x = rng.standard_normal((2, 2, 8, 8))
        return x, {"pixel_values": torch.from_numpy(x)}
    pad = PADS[family]
    ids = rng.integers(2, 31, (3, 7))
    ids[1, 4:] = pad
    ids[2, 1:] = pad
    return ids, {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(ids != pad)}


def targets(family):
    return TARGETS.get(family, ["query", "value"])


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
    of_tables = tables(checkpoint.family)
    part = {
        "A": "lora_A.default.weight",
        "B": "lora_B.default.weight",
        "bB": "lora_B.default.bias",
        "W": "weight",
        "b": "bias",
        "g": "weight",
    }
    copies = {k: v for k, v in J_ref.items() if "original_module" not in k}
    flat = {re.sub(r"(modules_to_save\.default|base_layer)\.", "", k): v for k, v in copies.items()}
    twice = "cls.token" in model.trainable and checkpoint.family == "deit"
    assert len(flat) == len(model.trainable) + twice
    at = 0
    for full in model.trainable:
        ours, key = full.rsplit(".", 1)
        ends = tuple(f".{m}.{part[key]}" for m in names.get(ours, ()))
        ends += tuple(f".{t}" for t in of_tables.get(full, ()))
        found = [v for k, v in flat.items() if k.endswith(ends)]
        assert len(found) == max(1, len(of_tables.get(full, ())))
        expected = np.concatenate(found, axis=1)  # DeiT's two tokens are one array here
        size = model.weights[full].size
        got, scale = Z[:, at : at + size], np.linalg.norm(expected)
        if full.endswith(
            (".k.b", ".k.bB")
        ):  # adds the same to all scores of a query: 0 but for rounding
            scale = np.linalg.norm(Z)
            assert np.linalg.norm(expected) <= TOL * scale
        assert np.linalg.norm(got - expected) <= TOL * scale, full
        at += size
    assert at == model.n


def peft_agrees(checkpoint, folder, net, args, x):
    """Whether PEFT, loading what was written, computes the checkpoint's logits."""
    written = peft.PeftModel.from_pretrained(net, folder).double().eval()
    z = forward(checkpoint.model, x)[0]
    with torch.no_grad():  # peft keeps adapters in the base's dtype, float64 here
        return np.linalg.norm(written(**args).logits.numpy() - z) <= TOL * np.linalg.norm(z)
