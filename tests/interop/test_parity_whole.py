"""Modules trained whole beside PEFT's factors, ranks above the widths, tables: against peft.

float64, and the bound of test_parity.py.
"""

import re

import numpy as np
import pytest
from peers import FAMILIES, adapt, build, compare, inputs, peft_agrees, reference, targets, torch

from loko_ref.errors import InputError
from loko_ref.interop import (
    load_adapter,
    load_classifier,
    read_tensors,
    save_adapter,
    write_tensors,
)
from loko_ref.network.model import sites

pytestmark = pytest.mark.filterwarnings("ignore")


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
    assert peft_agrees(checkpoint, tmp_path / "written", build(family), args, x)


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
    assert peft_agrees(checkpoint, tmp_path / "written", fresh, args, x)


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
