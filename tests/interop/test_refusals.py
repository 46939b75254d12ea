"""What is not supported is refused as that, and hostile fields as what they are: in bounded time.

Needs neither torch nor peft: the configurations are written by hand.
"""

import json
import re
import subprocess

import numpy as np
import pytest
import sampling
from handmade import CONFIG, adapted, change_json, saved
from hostile import needs_linux, run

from loko_ref.errors import InputError
from loko_ref.interop import load_adapter, load_classifier, patterns, read_tensors, write_tensors
from loko_ref.interop.adapter_config import REFUSED
from loko_ref.interop.model_config import REFUSED as REFUSED_MODELS

UNFIT = r"damaged|typing error"


def not_supported(call, *fields):
    """The message says so, names the fields, and blames neither the file nor the typing."""
    with pytest.raises(InputError, match="not supported") as caught:
        call()
    text = str(caught.value)
    assert not re.search(UNFIT, text), text
    for field in fields:
        assert field in text, text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint and an adapter, and both loaded."""
    folder = tmp_path_factory.mktemp("made")
    return folder, *adapted(folder, np.random.default_rng(0))


@pytest.fixture
def adapter(made):
    """A function that changes the adapter's configuration for a test, and loads it."""
    folder, base, _ = made
    path = folder / "adapter/adapter_config.json"
    good = path.read_text()

    def load(**change):
        change_json(path, change)
        return load_adapter(base, path.parent).model

    yield load
    path.write_text(good)


@pytest.mark.parametrize(
    "change",
    [
        *({"model_type": name} for name in ("gpt2", "albert", "xlm-roberta-xl", "electra")),
        *({"hidden_act": name} for name in ("silu", "quick_gelu", "gelu_fast", "swish", "mish")),
        *({field: True} for field in REFUSED_MODELS),
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"load_in_8bit": True}},
        {"architectures": ["ViTForMaskedImageModeling"]},
        {"patch_size": 3},
    ],
)
def test_models_that_are_not_supported(made, change):
    path = made[0] / "base/config.json"
    good = path.read_text()
    change_json(path, change)
    try:
        not_supported(lambda: load_classifier(path.parent), *change, "config.json")
    finally:
        path.write_text(good)


TEXT = {
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "vocab_size": 9,
    "max_position_embeddings": 8,
}


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding_type": "relative_key"},
        {"position_embedding_type": "relative_key_query"},
        {"hidden_act": "silu"},
        {"is_decoder": True},
        {"architectures": ["BertForMultipleChoice"]},
    ],
)
def test_texts_that_are_not_supported(tmp_path, family, change):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **TEXT, **change}))
    write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(2), "b": np.zeros(2)})
    not_supported(lambda: load_classifier(tmp_path), *change)


@pytest.mark.parametrize(
    "change",
    [
        *({field: True} for field in REFUSED),
        *({"init_lora_weights": name} for name in ("pissa", "olora", "corda", "loftq", "mica")),
        {"peft_type": "ADALORA"},
        {"bias": "some"},
        {"an_option_of_tomorrow": {"a": 1}},
        {"modules_to_save": ["embeddings"]},
    ],
)
def test_adapters_that_are_not_supported(adapter, change):
    not_supported(lambda: adapter(**change), *change, "adapter_config.json")


def test_lora_on_a_table_is_not_supported(tmp_path, rng):
    base, _ = adapted(tmp_path, rng)
    file = tmp_path / "adapter/adapter_model.safetensors"
    name = "base_model.model.roberta.embeddings.word_embeddings.lora_embedding_A"
    tensors = {k: np.array(v) for k, v in read_tensors(file).items()}
    write_tensors(file, tensors | {name: np.zeros((2, 9))})
    what = "LoRA on an embedding table"
    not_supported(lambda: load_adapter(base, file.parent), "lora_embedding_A", what)


@pytest.mark.parametrize("target", [["layernorm_before"], r".*(query|layernorm_before)"])
def test_lora_on_a_norm_is_not_supported(adapter, target):
    not_supported(lambda: adapter(target_modules=target), "target_modules", "layernorm_before")


ENDLESS = r"(\w+\.?)+$x"
INVALID = ("((", "[a", "(?P<x>", r"\q", "(a{99999999999})", "(" * 3000)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("target_modules", {"target_modules": ENDLESS}),
        ("target_modules", {"target_modules": "(a|[^x]|.)*y"}),
        ("exclude_modules", {"exclude_modules": ENDLESS}),
        ("rank_pattern", {"rank_pattern": {"q": 1, ENDLESS: 3, "(value)": 2}}),
        ("alpha_pattern", {"alpha_pattern": {ENDLESS: 3}}),
        ("layers_pattern", {"layers_to_transform": [0], "layers_pattern": [ENDLESS]}),
    ],
)
@needs_linux
def test_a_pattern_that_backtracks_for_ever(adapter, monkeypatch, field, change):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    end = run(lambda: adapter(**change), seconds=10)
    assert end.kind == "refused", end.text
    assert re.search(f"{field}.*within 0.2 s.*backtracks", end.text)


def test_the_pattern_that_takes_too_long_is_named(monkeypatch):
    """The process prints a line for each pattern: the one after the last line is the slow one."""

    def stopped(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"], output=b"{}\n{}\n")

    monkeypatch.setattr(subprocess, "run", stopped)
    three = [patterns.Expression(f"field {j}", f"({j})+", f"({j})+") for j in range(3)]
    with pytest.raises(InputError, match=r"field 2: got '\(2\)\+'"):
        patterns.search(three, ["a"])


@pytest.mark.parametrize(
    ("field", "pattern"),
    [*(("target_modules", pattern) for pattern in INVALID), ("rank_pattern", "((")],
)
def test_a_pattern_that_is_no_expression(adapter, pattern, field):
    value = pattern if field == "target_modules" else {pattern: 2}
    with pytest.raises(InputError, match=f"adapter_config.json: {field}.*regular expression"):
        adapter(**{field: value})


def test_patterns_in_a_process_and_here_agree():
    """A pattern that is a name is matched here; the same one in a group, in a process."""
    names = ["vit.layers.0.attention.q_proj", "vit.layers.11.attention.q_proj", "classifier"]
    for pattern in ("q_proj", r"layers\.0\.attention\.q_proj", "classifier", "proj", "vit"):
        texts = (rf"(.*\.)?({pattern})$", rf"(.*\.)?(({pattern}))$")
        here, there = (
            patterns.search([patterns.Expression("", p, text)], names)[0]
            for p, text in zip((pattern, f"({pattern})"), texts, strict=True)
        )
        assert here == there
        assert set(here) == {n for n in names if re.match(texts[0], n)}


VICES = [
    *(
        None,
        True,
        "",
        "x",
        "\ud800",
        -1,
        0,
        2.5,
        -0.5,
        10**400,
        2**31 - 1,
        float("nan"),
        float("inf"),
    ),
    *([], [None], [[]], [10**400], [1.5], ["x", None], {}, {"x": None}, {"x": -1}, {"x": 10**400}),
    {"x": float("nan")},
    {"x": [[]]},
]


def some(fields):
    """Pairs of a field and a vice: a seeded share of them in the default run."""
    pairs = [(key, value) for key in fields for value in VICES]
    return sampling.sample(pairs, 60, name=lambda pair: f"{pair[0]} {pair[1]!r:.40}")


@needs_linux
def test_hostile_values_of_an_adapters_fields(tmp_path, rng):
    """Every field read, with every vice: one of our errors that names it, or the same model."""
    base, full = adapted(tmp_path, rng)
    path = tmp_path / "adapter/adapter_config.json"
    good = json.loads(path.read_text())
    fields = (
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"),
        *("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"),
        *("init_lora_weights", "use_rslora", "lora_bias", "fan_in_fan_out", "lora_dropout"),
        *("task_type", "base_model_name_or_path", "inference_mode"),
    )

    def all_of_them():
        wrong = []
        for key, value in some(fields):
            path.write_text(json.dumps(good | {key: value}))
            try:
                model = load_adapter(base, tmp_path / "adapter").model
            except InputError as error:
                if key not in str(error) and "missing" not in str(error):
                    wrong.append((key, value, str(error)))
            else:
                same = model.trainable == full.model.trainable
                if not same or not harmless(key, value):
                    wrong.append((key, value, "accepted"))
        return wrong

    end = run(all_of_them, seconds=60)
    assert end.kind == "accepted", end.text
    assert end.value == []


def harmless(key, value):
    """Whether the value means what its absence does, or is one of the field's own."""
    own = {
        "lora_alpha": (int, float),
        "lora_dropout": (int, float),
        "task_type": (str,),
        "base_model_name_or_path": (str,),
        "exclude_modules": (str, list),
        "modules_to_save": (list,),
        "init_lora_weights": (bool,),
        "rank_pattern": (dict,),
        "alpha_pattern": (dict,),
    }
    if key == "layers_to_transform" and value in (0, 2**31 - 1):  # the targets are whole names
        return True
    if value is None or value in ([], {}, ""):
        return True
    if isinstance(value, bool):
        return key in ("init_lora_weights", "fan_in_fan_out", "inference_mode", "use_rslora")
    return isinstance(value, own.get(key, ()))


@needs_linux
def test_hostile_values_of_a_models_fields(tmp_path, rng):
    """As for the adapter's, each within the memory that the file could need."""
    model = saved(tmp_path, rng)
    path = tmp_path / "config.json"

    def all_of_them():
        wrong = []
        for key, value in some((*CONFIG, "num_labels", "qkv_bias", "layer_norm_eps", "hidden_act")):
            without = {k: v for k, v in CONFIG.items() if k != "id2label"}
            path.write_text(json.dumps((without if key == "num_labels" else CONFIG) | {key: value}))
            for head in (None, np.random.default_rng(0)):
                try:
                    got = load_classifier(tmp_path, head=head).model
                except InputError as error:
                    if not re.search(rf"{key}|missing|got shape", str(error)):
                        wrong.append((key, value, str(error)))
                else:
                    if not accepted(key, value, head) or got.inputs != model.inputs:
                        wrong.append((key, value, "accepted"))
        return wrong

    end = run(all_of_them, seconds=60)
    assert end.kind == "accepted", end.text
    assert end.value == []


def accepted(key, value, head):
    """Whether the field may have the value, for the ViT that the file holds."""
    if key == "layer_norm_eps":
        return value is not True and isinstance(value, int | float) and 0 <= value < 1e300
    if key in ("qkv_bias", "hidden_act"):
        return value is None or (key == "qkv_bias" and value is True)
    return head is not None and key in ("id2label", "num_labels")
