"""Damaged, pickled, missing, surplus: each refused by name. Needs neither torch nor peft."""

import json
import struct

import numpy as np
import pytest

from loko_ref.architectures import roberta_spec, vit_spec
from loko_ref.errors import InputError
from loko_ref.interop import (
    load_adapter,
    load_classifier,
    read_tensors,
    save_adapter,
    write_tensors,
)
from loko_ref.interop.checkpoints import Checkpoint
from loko_ref.interop.families import modules
from loko_ref.interop.fields import Fields
from loko_ref.interop.targets import targeted
from loko_ref.model import Model, add_lora, forward, init_model

SIZE = {"layers": 2, "width": 4, "heads": 2, "ff": 6, "outputs": 3}
CONFIG = {
    "model_type": "vit",
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}


def saved(folder, rng, change=lambda tensors: None, **config):
    """A ViT checkpoint written by hand, in transformers 4's names."""
    model = init_model(rng, vit_spec(image=(1, 4, 4), patch=(2, 2), **SIZE))
    names, tensors = modules("vit", 2), {}
    for key, array in model.weights.items():
        ours, part = key.rsplit(".", 1)
        if ours in names:
            suffix = {"W": "weight", "g": "weight", "b": "bias"}[part]
            tensors[f"{names[ours][-1]}.{suffix}"] = array
    at = "vit.embeddings."
    kernel = at + "patch_embeddings.projection.weight"
    tensors[kernel] = tensors[kernel].reshape(4, 1, 2, 2)
    tensors[at + "cls_token"] = model.weights["cls.token"][None]
    tensors[at + "position_embeddings"] = model.weights["pos.position"][None]
    change(tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    write_tensors(folder / "model.safetensors", tensors)
    return model


def test_round_trip(tmp_path, rng):
    model = saved(tmp_path, rng)
    again = load_classifier(tmp_path).model
    for key, array in model.weights.items():
        assert (again.weights[key] == array).all(), key
    assert load_classifier(tmp_path, dtype="float32").model.dtype == np.float32


def test_shards(tmp_path, rng):
    model = saved(tmp_path, rng)
    tensors = read_tensors(tmp_path / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        write_tensors(tmp_path / file, {k: tensors[k] for k in part})
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {k: f for f, part in shards.items() for k in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    x = rng.standard_normal((2, 16))
    assert (forward(load_classifier(tmp_path).model, x)[0] == forward(model, x)[0]).all()
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors.*missing shard"):
        load_classifier(tmp_path)


def test_missing_and_surplus_are_named(tmp_path, rng):
    def change(tensors):
        tensors["vit.pooler.dense.weight"] = tensors.pop("classifier.weight")

    saved(tmp_path, rng, change)
    with pytest.raises(InputError, match=r"missing \['classifier.weight'\], surplus \['vit.pooler"):
        load_classifier(tmp_path)
    fresh = load_classifier(tmp_path, head=np.random.default_rng(0), outputs=7).model
    assert fresh.weights["head.out.W"].shape == (7, 4)


def test_misshapen_is_named(tmp_path, rng):
    def change(tensors):
        tensors["classifier.weight"] = np.zeros((5, 4))

    saved(tmp_path, rng, change)
    with pytest.raises(InputError, match=r"classifier.weight: got shape \(5, 4\)"):
        load_classifier(tmp_path)


def test_quantised_is_named(tmp_path, rng):
    def change(tensors):
        tensors["classifier.weight"] = np.ones((3, 4), np.int8)

    saved(tmp_path, rng, change)
    with pytest.raises(InputError, match=r"classifier.weight: got dtype int8; required floats"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size"),
        ({"architectures": ["DeiTForImageClassificationWithTeacher"]}, "architectures"),
    ],
)
def test_configurations_refused(tmp_path, rng, change, where):
    saved(tmp_path, rng, **change)
    with pytest.raises(InputError, match=where):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000; required at most"),
        ({"hidden_size": 4.0}, "hidden_size"),
        ({"intermediate_size": True}, "intermediate_size"),
        ({"id2label": 3}, "id2label"),
        ({"id2label": None, "num_labels": "three"}, "num_labels"),
        ({"architectures": 5}, "architectures"),
        ({"image_size": "4"}, "image_size"),
        ({"image_size": [4]}, "image_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": [2, 2.0]}, "patch_size"),
        ({"num_channels": [1]}, "num_channels"),
        ({"qkv_bias": "false"}, "qkv_bias"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(tmp_path, rng, change, where):
    saved(tmp_path, rng, **change)
    with pytest.raises(InputError, match=where):
        load_classifier(tmp_path)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (DEEP, "RecursionError"),
        (b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', "inf is no size"),
        (b'{"a":{"dtype":"F32","shape":[1.7],"data_offsets":[0,4]}}', "1.7 is no size"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[1e999,4]}}', "inf is no size"),
        (b'{"a":{"dtype":"F32","shape":[0,%d],"data_offsets":[0,0]}}' % (2**70,), "is no size"),
        (
            b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b",".join([b"1"] * 99),),
            "99",
        ),
        (b'{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"a":{}}', "given twice"),
    ],
)
def test_an_absurd_head_is_refused(tmp_path, head, said):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"0000")
    with pytest.raises(InputError, match=said):
        read_tensors(path)


@pytest.mark.parametrize("text", [DEEP.decode(), '{"weight_map": {"a": 3}}'])
def test_an_absurd_index_is_refused(tmp_path, rng, text):
    saved(tmp_path, rng)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json"):
        load_classifier(tmp_path)


def test_an_absurd_configuration_is_refused(tmp_path, rng):
    saved(tmp_path, rng)
    (tmp_path / "config.json").write_text(DEEP.decode())
    with pytest.raises(InputError, match="RecursionError"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("length", [640, 1152])
def test_a_head_whose_length_reads_as_a_pickles_magic_is_no_pickle(tmp_path, rng, length):
    """640 is 80 02, 1152 is 80 04 in little-endian bytes: pickle's protocols 2 and 4."""
    path, tensors = tmp_path / "model.safetensors", {"w": rng.standard_normal((2, 3))}
    write_tensors(path, tensors, {"note": ""})
    (bare,) = struct.unpack("<Q", path.read_bytes()[:8])
    write_tensors(path, tensors, {"note": "x" * (length - bare)})
    raw = path.read_bytes()
    assert struct.unpack("<Q", raw[:8]) == (length,)
    assert raw[:2] in (b"\x80\x02", b"\x80\x04")
    assert (read_tensors(path)["w"] == tensors["w"]).all()
    path.write_bytes(raw[:2] + b"K\x01.")  # the same two bytes, and the pickle of 1
    with pytest.raises(InputError, match="pickled"):
        read_tensors(path)


def test_pickles_are_refused(tmp_path, rng):
    saved(tmp_path, rng)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        load_classifier(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError, match="pickled"):
        load_classifier(tmp_path)


def damage(data, how):
    (length,) = struct.unpack("<Q", data[:8])
    if how == "empty":
        return b""
    if how == "truncated":
        return data[:-9]
    if how == "no JSON":
        return data[:8] + b"x" + data[9:]
    if how == "long head":
        return struct.pack("<Q", 1 << 60) + data[8:]
    if how == "surplus data":
        return data + b"12345678"
    head = json.loads(data[8 : 8 + length])
    entry = head["b"]
    if how == "shape":
        entry["shape"] = [7, 7]
    if how == "dtype":
        entry["dtype"] = "F8_E4M3"
    if how == "overlap":
        entry["data_offsets"] = head["a"]["data_offsets"]
        entry["shape"] = head["a"]["shape"]
    if how == "no offsets":
        del entry["data_offsets"]
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


HOW = {
    "empty": "truncated",
    "truncated": "truncated",
    "no JSON": "damaged",
    "long head": "truncated",
    "surplus data": "data of no tensor",
    "shape": "tensor 'b'",
    "dtype": "tensor 'b'",
    "overlap": "tensor 'b'",
    "no offsets": "tensor 'b'",
}


@pytest.mark.parametrize("how", HOW)
def test_damage_is_named(tmp_path, how):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4.0)})
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(InputError, match=HOW[how]):
        read_tensors(path)


def test_every_dtype_round_trips(tmp_path):
    arrays = {
        t: np.array([[0, 1, 2]]).astype(t)
        for t in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")
    }
    arrays["scalar"], arrays["none"] = np.float64(3.5), np.zeros((0, 2))
    write_tensors(tmp_path / "a", arrays, {"format": "pt", "who": "test"})
    back = read_tensors(tmp_path / "a")
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype
        assert back[key].shape == array.shape
        assert (back[key] == array).all()
    with pytest.raises(InputError, match="complex"):
        write_tensors(tmp_path / "a", {"z": np.zeros(2, complex)})


def test_bfloat16_is_widened_exactly(tmp_path):
    head = {"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    text = json.dumps(head).encode()
    body = np.array([0x3F80, 0xC040, 0x0001], "<u2").tobytes()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + body)
    a = read_tensors(tmp_path / "a")["a"]
    assert a.dtype == np.float32
    assert a.tolist() == [1.0, -3.0, 2.0**-133]


def test_our_files_read_with_safetensors(tmp_path):
    load_file = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed"
    ).load_file
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=np.float32)}
    write_tensors(tmp_path / "a", arrays)
    back = load_file(tmp_path / "a")
    assert all((back[k] == v).all() and back[k].dtype == v.dtype for k, v in arrays.items())


def adapted(tmp_path, rng):
    saved(tmp_path / "base", rng)
    base = load_classifier(tmp_path / "base")
    model = add_lora(rng, base.model, r=2, alpha=3.0, targets=["0.q", "1.v"])
    full = Checkpoint(model=model, family="vit", config=base.config)
    save_adapter(full, tmp_path / "adapter")
    return base, full


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


def test_every_module_of_a_spec_has_a_name():
    spec = roberta_spec(vocab=9, positions=8, **SIZE)
    named = {layer["name"] for layer in spec if "name" in layer} - {"emb"}
    assert named <= modules("roberta", 2).keys()
