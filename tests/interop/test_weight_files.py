"""Damaged, pickled, missing, surplus: each refused by name. Needs neither torch nor peft."""

import json
import struct

import numpy as np
import pytest
from handmade import SIZE, saved

from loko_ref.errors import InputError
from loko_ref.interop import load_classifier, read_tensors, write_tensors
from loko_ref.interop.families import modules
from loko_ref.network.architectures import roberta_spec
from loko_ref.network.model import forward


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
        (DEEP, "64 levels deep"),
        (
            b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
            "1e999; required",
        ),
        (b'{"a":{"dtype":"F32","shape":[1.7],"data_offsets":[0,4]}}', "1.7 is not a size"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[1e999,4]}}',
            "1e999; required",
        ),
        (b'{"a":{"dtype":"F32","shape":[0,%d],"data_offsets":[0,0]}}' % (2**70,), "no array has"),
        (
            b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b",".join([b"1"] * 99),),
            "99",
        ),
        (b'{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"a":{}}', "twice"),
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
    with pytest.raises(InputError, match="64 levels deep"):
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
    with pytest.raises(InputError, match=r"pickled.*Save it again"):
        load_classifier(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(InputError, match=r"00001-of-00002\.bin: got a pickled"):
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


def test_every_module_of_a_spec_has_a_name():
    spec = roberta_spec(vocab=9, positions=8, **SIZE)
    named = {layer["name"] for layer in spec if "name" in layer} - {"emb"}
    assert named <= modules("roberta", 2).keys()
