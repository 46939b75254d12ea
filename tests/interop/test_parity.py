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
from loko_ref.interop.families import modules, tables  # noqa: E402
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
pytestmark = pytest.mark.filterwarnings("ignore")


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


CASES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {r"layers?\.1\..*(value|v_proj|v_lin)": 4},
        "alpha_pattern": {"query": 3, "q_proj": 3, "q_lin": 3},
    },
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.1\..*(key|k_proj|k_lin|dense|fc1|lin1)"},
    "one layer": {"layers_to_transform": [1]},
    "bias of B": {"lora_bias": True},
    "biases of the sites": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "rank above the widths": {"r": 24, "rank_pattern": {"value|v_proj|v_lin": 2}},
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
        if full.endswith(".k.b"):  # adds the same to all scores of a query: 0 but for rounding
            scale = np.linalg.norm(Z)
            assert np.linalg.norm(expected) <= TOL * scale
        assert np.linalg.norm(got - expected) <= TOL * scale, full
        at += size
    assert at == model.n


@pytest.mark.parametrize(
    ("family", "case"),
    [(f, c) for f in ("roberta", "bert", "distilbert", "vit", "deit") for c in CASES]
    + [(f, c) for f in ("xlm-roberta", "camembert") for c in ("plain", "all-linear")],
)
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


def saved_too(family, names, tmp_path, **options):
    """A checkpoint whose adapter trains whole modules too, and the network tuned."""
    net = build(family)
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, family, modules_to_save=names, **options)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "modules_to_save" in name:
                p.add_(0.3 * torch.randn_like(p))
    tuned.save_pretrained(tmp_path / "adapter")
    return load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter"), tuned


WHOLE = {
    "head": ({f: ["classifier"] for f in FAMILIES}, ("head.out.W",)),
    "norms": (
        {
            **{f: ["LayerNorm", "layer_norm"] for f in ("roberta", "bert", "distilbert")},
            **{f: ["layernorm_after", f"{f}.layernorm"] for f in ("vit", "deit")},
        },
        ("1.n2.g",),
    ),
    "tables": (
        {
            "roberta": ["word_embeddings", "position_embeddings"],
            "bert": ["word_embeddings", "token_type_embeddings"],
            "distilbert": ["distilbert.embeddings"],
            "vit": ["vit.embeddings"],
            "deit": ["deit.embeddings"],
        },
        ("emb.token", "cls.token"),
    ),
}


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "vit", "deit"])
@pytest.mark.parametrize("what", WHOLE)
def test_modules_trained_whole(family, what, tmp_path, rng):
    """Beside the factors: loaded, with PEFT's Jacobian, and written so that PEFT loads them."""
    names, trained = WHOLE[what]
    checkpoint, tuned = saved_too(family, names[family], tmp_path)
    x, args = inputs(family, rng)
    compare(checkpoint, x, *reference(tuned, args))
    assert set(trained) & set(checkpoint.model.trainable)
    if what == "head":
        assert [s for s, _, _ in sites(checkpoint.model)][-1] == "head.out"
    save_adapter(checkpoint, tmp_path / "written")
    again = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "written")
    assert again.model.trainable == checkpoint.model.trainable
    written = peft.PeftModel.from_pretrained(build(family), tmp_path / "written").double().eval()
    z = forward(checkpoint.model, x)[0]
    with torch.no_grad():
        assert np.linalg.norm(written(**args).logits.numpy() - z) <= TOL * np.linalg.norm(z)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_rank_above_the_number_of_classes(family, tmp_path, rng):
    """Rank 8 on a head of 2 classes: computed and written as PEFT does."""
    net = build(family, num_labels=2)
    net.save_pretrained(tmp_path / "base")
    head = ["out_proj"] if family == "roberta" else ["classifier"]
    tuned = adapt(net, family, r=8, target_modules=targets(family) + head)
    tuned.save_pretrained(tmp_path / "adapter")
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    assert checkpoint.model.weights["head.out.B"].shape == (2, 8)
    x, args = inputs(family, rng)
    compare(checkpoint, x, *reference(tuned, args))
    save_adapter(checkpoint, tmp_path / "written")
    fresh = build(family, num_labels=2)
    written = peft.PeftModel.from_pretrained(fresh, tmp_path / "written").double().eval()
    z = forward(checkpoint.model, x)[0]
    with torch.no_grad():
        assert np.linalg.norm(written(**args).logits.numpy() - z) <= TOL * np.linalg.norm(z)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("target", [["query", "word_embeddings"], r".*(query|word_embeddings)"])
def test_lora_on_a_table_is_refused_as_not_supported(family, target, tmp_path):
    net = build(family)
    net.save_pretrained(tmp_path / "base")
    adapt(net, family, target_modules=target).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"not supported.*LoRA on an embedding table"):
        load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")


def test_modules_within_one_another_are_refused(tmp_path):
    """The ending fits the embeddings and a module in them; PEFT does not load what it wrote."""
    with pytest.raises(InputError, match=r"modules_to_save.*not supported.*vit\.embeddings and"):
        saved_too("vit", ["embeddings"], tmp_path)


def test_a_table_that_is_stored_but_not_trained(tmp_path, rng):
    net = build("bert")
    net.save_pretrained(tmp_path / "base")
    tuned = adapt(net, "bert")
    with torch.no_grad():
        net.bert.embeddings.word_embeddings.weight.mul_(1.1)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    checkpoint = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    assert "emb.token" not in checkpoint.model.trainable
    x, args = inputs("bert", rng)
    compare(checkpoint, x, *reference(tuned, args))


def test_names_with_the_adapters_own_name_in_them(tmp_path, rng):
    """As torch's state_dict has them, and PEFT's files have not."""
    checkpoint, _ = saved_too("bert", ["classifier"], tmp_path)
    file = tmp_path / "adapter/adapter_model.safetensors"
    infix = {
        re.sub(r"(lora_[AB]|classifier)\.(?=\w+$)", r"\1.default.", k).replace(
            "classifier.default", "classifier.modules_to_save.default"
        ): np.array(v)
        for k, v in read_tensors(file).items()
    }
    assert sum(".default." in name for name in infix) == len(infix)
    write_tensors(file, infix)
    again = load_adapter(load_classifier(tmp_path / "base"), tmp_path / "adapter")
    for key, array in checkpoint.model.weights.items():
        assert (again.model.weights[key] == array).all(), key


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
    [
        *("plain", "rslora", "patterns", "bias of B", "biases of the sites", "all biases"),
        "rank above the widths",
    ],
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
