"""Adapters as files: round trip, options and errors. Needs neither torch nor peft."""

import json

import numpy as np
import pytest
from handmade import adapted, change_json

from loko_ref.errors import InputError
from loko_ref.interop import (
    load_adapter,
    load_classifier,
    read_tensors,
    save_adapter,
    write_tensors,
)
from loko_ref.interop.checkpoints import Checkpoint
from loko_ref.interop.fields import Fields
from loko_ref.interop.targets import targeted
from loko_ref.network.model import Model


def test_adapter_round_trip_and_its_errors(tmp_path, rng):
    base, full = adapted(tmp_path, rng)
    again = load_adapter(base, tmp_path / "adapter")
    assert again.model.trainable == full.model.trainable
    for key in again.model.trainable:
        assert (again.model.weights[key] == full.model.weights[key]).all()
    with pytest.raises(InputError, match="already"):
        load_adapter(again, tmp_path / "adapter")

    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = {k: np.array(v) for k, v in read_tensors(file).items()}
    name = next(iter(tensors))
    write_tensors(file, {k: v for k, v in tensors.items() if k != name} | {"odd": np.zeros(1)})
    with pytest.raises(InputError, match=rf"missing \['{name}'\], surplus \['odd'\]"):
        load_adapter(base, tmp_path / "adapter")
    write_tensors(file, tensors | {name: np.zeros((9, 9))})
    with pytest.raises(InputError, match="another base model"):
        load_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "some"},
        {"bias": "all"},  # the file has none
        {"fan_in_fan_out": "True"},
        {"r": None},
        {"r": 2.5},
        {"rank_pattern": {"query": 2.7}},
        {"rank_pattern": ["query"]},
        {"rank_pattern": {"((": 2}},
        {"alpha_pattern": {"query": "16"}},
        {"lora_alpha": float("nan")},
        {"use_rslora": "false"},
        {"modules_to_save": "classifier"},
        {"exclude_modules": "(("},
        {"target_modules": 5},
        {"layers_to_transform": ["0"]},
        {"layers_to_transform": [0], "layers_pattern": ["(("]},
        {"target_modules": ["query_key_value"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "mica"},
        {"kasa_config": {"beta": 1e-4}},
        {"an_option_of_tomorrow": True},
    ],
)
def test_adapters_refused(tmp_path, rng, change):
    base, _ = adapted(tmp_path, rng)
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=f"{next(iter(change))}|missing|another base model"):
        load_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"layers_to_transform": []},
        {"fan_in_fan_out": True},  # of GPT-2's layers; PEFT resets it on a linear
        {"an_option_of_tomorrow": None, "lora_dropout": 0.1, "use_dora": False},
    ],
)
def test_options_that_change_nothing(tmp_path, rng, change):
    base, full = adapted(tmp_path, rng)
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    again = load_adapter(base, tmp_path / "adapter").model
    for key, array in full.model.weights.items():
        assert (again.weights[key] == array).all(), key


def test_a_quantised_adapter_is_named(tmp_path, rng):
    base, _ = adapted(tmp_path, rng)
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = {k: np.array(v) for k, v in read_tensors(file).items()}
    name = next(iter(tensors))
    write_tensors(file, tensors | {name: np.ones(tensors[name].shape, np.int8)})
    with pytest.raises(InputError, match=f"{name}: got dtype int8; required floats"):
        load_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named(tmp_path, rng, value):
    """NaN, infinity, and what overflows in the model's dtype."""
    adapted(tmp_path, rng)
    base = load_classifier(tmp_path / "base", dtype="float32")
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = {k: np.array(v) for k, v in read_tensors(file).items()}
    name = next(iter(tensors))
    tensors[name][0, 0] = value
    write_tensors(file, tensors)
    with pytest.raises(InputError, match=f"{name}: got NaN or infinity; required .*float32"):
        load_adapter(base, tmp_path / "adapter")


def test_a_rank_that_no_tensor_has(tmp_path, rng):
    """Before memory is taken for it: the tensors are missing, and the bias would have 2^31."""
    base, _ = adapted(tmp_path, rng)
    change_json(tmp_path / "adapter/adapter_config.json", {"r": 2**31 - 1, "lora_bias": True})
    with pytest.raises(InputError, match=r"lora_A.weight: got shape \(2, 4\); required \(21474"):
        load_adapter(base, tmp_path / "adapter")
    write_tensors(tmp_path / "adapter/adapter_model.safetensors", {"a": np.zeros(1)})
    with pytest.raises(InputError, match="missing"):
        load_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["0.n1.g"], "0.n1.b"),
        (["cls.token"], "patch.W"),
    ],
)
def test_modules_trained_in_part_are_refused(tmp_path, rng, extra, word):
    _, full = adapted(tmp_path, rng)
    model = full.model
    order = [k for k in model.weights if k in (*extra, *model.trainable)]
    part = Model(spec=model.spec, weights=model.weights, trainable=tuple(order))
    with pytest.raises(InputError, match=f"'{word}' not trained.*whole modules"):
        save_adapter(Checkpoint(model=part, family="vit", config=full.config), tmp_path / "part")
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("word", ["lora_only", "all"])
def test_biases_round_trip_and_others_are_refused(tmp_path, rng, word):
    base, full = adapted(tmp_path, rng)
    held = [k for k in full.model.weights if k.endswith(".b")]
    chosen = ["0.q.b", "1.v.b"] if word == "lora_only" else held
    weights = {k: w + 0.5 if k in chosen else w for k, w in full.model.weights.items()}

    def trained(names):
        order = [k for k in weights if k in (*names, *full.model.trainable)]
        model = Model(spec=full.model.spec, weights=weights, trainable=tuple(order))
        return Checkpoint(model=model, family="vit", config=base.config)

    save_adapter(trained(chosen), tmp_path / "biased")
    assert json.loads((tmp_path / "biased/adapter_config.json").read_text())["bias"] == word
    again = load_adapter(base, tmp_path / "biased").model
    assert set(again.trainable) == {*chosen, *full.model.trainable}
    for key, array in weights.items():
        assert (again.weights[key] == array).all(), key
    with pytest.raises(InputError, match=r"the biases of \['0\.q'\]"):
        save_adapter(trained(["0.q.b"]), tmp_path / "some")


QUERY = "roberta.encoder.layer.11.attention.self.query"
HEAD = "classifier"


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        ({"target_modules": ["query"]}, {QUERY}),
        ({"target_modules": ["uery"]}, set()),
        ({"target_modules": [QUERY]}, {QUERY}),
        ({"target_modules": r".*self\.(query|key)"}, {QUERY}),
        ({"target_modules": r"self\.query"}, set()),
        ({"target_modules": ["query"], "exclude_modules": ["query"]}, set()),
        ({"target_modules": ["query"], "exclude_modules": r".*\.1[01]\..*"}, set()),
        ({"target_modules": ["query"], "layers_to_transform": 11}, {QUERY}),
        ({"target_modules": ["query"], "layers_to_transform": [1]}, set()),
        ({"target_modules": ["query", HEAD], "layers_to_transform": [1]}, {HEAD}),
        (
            {"target_modules": ["query"], "layers_to_transform": [11], "layers_pattern": "layer"},
            {QUERY},
        ),
        (
            {"target_modules": ["query"], "layers_to_transform": [11], "layers_pattern": ["lay"]},
            set(),
        ),
        ({"target_modules": "all-linear"}, {QUERY, HEAD}),
        ({"target_modules": "all-linear", "task_type": "SEQ_CLS"}, {QUERY}),
        ({"target_modules": "all-linear", "modules_to_save": ["classifier"]}, {QUERY}),
    ],
)
def test_targets(config, chosen):
    modules = [QUERY, HEAD, "roberta.embeddings.LayerNorm"]
    assert targeted(Fields("adapter_config.json", config), modules, {QUERY, HEAD}) == chosen
