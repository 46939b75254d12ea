"""Random small classifiers of transformers, with peft's LoRA: logits and every factor's Jacobian.

float64. The bound is the issue's: 1e-11 of the norm of each array, factor by factor.
"""

import json

import numpy as np
import pytest
from peers import TOL, adapt, build, compare, inputs, peft_agrees, reference, torch

from loko_ref.errors import InputError
from loko_ref.interop import (
    load_adapter,
    load_classifier,
    read_tensors,
    save_adapter,
    write_tensors,
)
from loko_ref.network.model import forward
from loko_ref.network.spec import walk

pytestmark = pytest.mark.filterwarnings("ignore")
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
    assert peft_agrees(checkpoint, tmp_path / "written", build("vit"), args, x)


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
    assert peft_agrees(checkpoint, tmp_path / "written", build(family), args, x)


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
