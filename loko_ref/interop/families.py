"""Families of classifiers: the names of their modules and tensors, and of their sizes.

Each name has one spelling per generation (transformers 5 renamed ViT's modules in memory, older
BERT files say gamma and beta), and all are known here. XLM-RoBERTa and CamemBERT are RoBERTa by
another name, with RoBERTa's module names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_BERT = {
    "q": ("attention.self.query",),
    "k": ("attention.self.key",),
    "v": ("attention.self.value",),
    "o": ("attention.output.dense",),
    "n1": ("attention.output.LayerNorm",),
    "f1": ("intermediate.dense",),
    "f2": ("output.dense",),
    "n2": ("output.LayerNorm",),
}
_DISTILBERT = {
    "q": ("attention.q_lin",),
    "k": ("attention.k_lin",),
    "v": ("attention.v_lin",),
    "o": ("attention.out_lin",),
    "n1": ("sa_layer_norm",),
    "f1": ("ffn.lin1",),
    "f2": ("ffn.lin2",),
    "n2": ("output_layer_norm",),
}
_VIT = {
    "q": ("attention.q_proj", "attention.attention.query"),
    "k": ("attention.k_proj", "attention.attention.key"),
    "v": ("attention.v_proj", "attention.attention.value"),
    "o": ("attention.o_proj", "attention.output.dense"),
    "n1": ("layernorm_before", "layernorm_before"),
    "f1": ("mlp.fc1", "intermediate.dense"),
    "f2": ("mlp.fc2", "output.dense"),
    "n2": ("layernorm_after", "layernorm_after"),
}
_TEXT_TABLES = {
    "emb.token": ("word_embeddings.weight",),
    "emb.position": ("position_embeddings.weight",),
}

_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ff": "intermediate_size",
    "activation": "hidden_act",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of classifiers."""

    prefix: str  # of the encoder's modules
    # where block j lies (`blocks.j`), one for each generation, the newest first
    blocks: tuple[str, ...] = ("encoder.layer",)
    # our name in a block -> its modules, one for each generation
    inner: Mapping[str, tuple[str, ...]]
    outside: Mapping[str, str]  # our name outside the blocks -> its module
    # our array -> the tensors below `prefix.embeddings` that make it up, one below the other
    tables: Mapping[str, tuple[str, ...]]
    # our size -> config.json's field
    sizes: Mapping[str, str] = field(default_factory=lambda: _SIZES)
    image: bool = False  # whether it reads images; else token ids
    rule: bool = False  # whether positions are numbered by RoBERTa's rule


_ROBERTA = Family(
    prefix="roberta",
    inner=_BERT,
    outside={
        "emb.norm": "roberta.embeddings.LayerNorm",
        "head.dense": "classifier.dense",
        "head.out": "classifier.out_proj",
    },
    tables={**_TEXT_TABLES, "emb.type": ("token_type_embeddings.weight",)},
    rule=True,
)


def _vit(prefix: str, tokens: tuple[str, ...]) -> Family:
    return Family(
        prefix=prefix,
        blocks=("layers", "encoder.layer"),
        inner=_VIT,
        outside={
            "patch": f"{prefix}.embeddings.patch_embeddings.projection",
            "norm": f"{prefix}.layernorm",
            "head.out": "classifier",
        },
        tables={"cls.token": tokens, "pos.position": ("position_embeddings",)},
        image=True,
    )


FAMILIES: dict[str, Family] = {
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "bert": Family(
        prefix="bert",
        inner=_BERT,
        outside={
            "emb.norm": "bert.embeddings.LayerNorm",
            "head.dense": "bert.pooler.dense",
            "head.out": "classifier",
        },
        tables=_ROBERTA.tables,
    ),
    "distilbert": Family(
        prefix="distilbert",
        blocks=("transformer.layer",),
        inner=_DISTILBERT,
        outside={
            "emb.norm": "distilbert.embeddings.LayerNorm",
            "head.dense": "pre_classifier",
            "head.out": "classifier",
        },
        tables=_TEXT_TABLES,
        sizes={
            "layers": "n_layers",
            "width": "dim",
            "heads": "n_heads",
            "ff": "hidden_dim",
            "activation": "activation",
        },
    ),
    "vit": _vit("vit", ("cls_token",)),
    "deit": _vit("deit", ("cls_token", "distillation_token")),
}
"""config.json's model_type -> the family."""

LEAF = {"W": ("weight",), "b": ("bias", "beta"), "g": ("weight", "gamma")}
"""Our array of a module -> its tensor's names, the newest first."""


def modules(family: str, layers: int) -> dict[str, tuple[str, ...]]:
    """Our layer name -> the checkpoint's module names, the newest spelling first.

    Examples
    --------
    >>> modules("vit", 1)["0.q"]
    ('vit.layers.0.attention.q_proj', 'vit.encoder.layer.0.attention.attention.query')
    """
    own = FAMILIES[family]
    found: dict[str, tuple[str, ...]] = {k: (theirs,) for k, theirs in own.outside.items()}
    for j in range(layers):
        for key, names in own.inner.items():
            found[f"{j}.{key}"] = tuple(
                f"{own.prefix}.{block}.{j}.{name}"
                for block, name in zip(own.blocks, names, strict=True)
            )
    return found


def tables(family: str) -> dict[str, tuple[str, ...]]:
    """Our array name -> the checkpoint's tensors that make it up, one below the other."""
    own = FAMILIES[family]
    at = f"{own.prefix}.embeddings."
    return {ours: tuple(at + name for name in names) for ours, names in own.tables.items()}


def spellings(family: str, layers: int) -> dict[str, list[tuple[str, ...]]]:
    """Our array name -> for each part of it, every name under which a file may hold it."""
    prefix = f"{FAMILIES[family].prefix}."

    def bare(names: Sequence[str]) -> tuple[str, ...]:  # a bare encoder is saved without prefix
        return (*names, *(n[len(prefix) :] for n in names if n.startswith(prefix)))

    found = {ours: [bare((part,)) for part in parts] for ours, parts in tables(family).items()}
    for ours, theirs in modules(family, layers).items():
        for key, leaves in LEAF.items():
            found[f"{ours}.{key}"] = [bare([f"{m}.{leaf}" for m in theirs for leaf in leaves])]
    return found
