"""Facts of attention, of texts with padding, and of the tables of an embedding.

Shapes: x (batch, t, d) or token ids (batch, t); z (batch, C).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref.arrays import Array
from loko_ref.network.spec import linears
from loko_ref.properties.facts.network import check_derivative, check_merged
from loko_ref.properties.nets import (
    attention,
    bert,
    branches,
    changed,
    head,
    nets,
    replaced,
    run,
    same,
    site,
    spec_of,
    wide,
)
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Trial, Unsuitable

__all__: list[str] = []

FORWARD = "model.forward"


def _plain(draw: hs.DrawFn, small: bool) -> Any:
    heads = draw(hs.integers(1, 2))
    width = heads * (1 if small else draw(hs.integers(1, 2)))
    return [attention(heads, width), {"kind": "pool", "how": "mean"}, head(width)]


def _between(draw: hs.DrawFn, small: bool) -> Any:
    width = 2 if small else 3
    middle: list[dict[str, Any]] = [{"kind": draw(hs.sampled_from(["gelu", "gelu_tanh"]))}]
    if draw(hs.booleans()):
        middle = [{"kind": "prepend", "name": "first", "width": width, "count": 1}, *middle]
        middle.append({"kind": "pool", "how": draw(hs.sampled_from(["mean", "cls"]))})
    return [site("0", width, width, not small), *middle, site("1", width, width, not small)]


@fact("model.jacobian", "derivative of gelu", "LAY-6 LAY-11 ATT-5 LAY-9",
      "Z v is the derivative of z as factors on both sides of gelu, or of a token, move along v",
      nets(_between), "gelu, gelu_tanh; with a token put first and pooling")  # fmt: skip
def _gelu(t: Trial) -> None:
    check_derivative(t)


@fact("model.jacobian", "derivative of attention", "ATT-2 LAY-9",
      "Z v is the derivative of z as the factors of q, k, v, o move along v", nets(wide),
      "heads of two features, two tokens or more, rank 2")  # fmt: skip
def _derivative(t: Trial) -> None:
    check_derivative(t)


@fact(FORWARD, "merged attention", "LORA-3 ATT-2",
      "the branches of q, k, v, o folded into W and b give the same outputs", nets(wide),
      "rank 2")  # fmt: skip
def _merged(t: Trial) -> None:
    check_merged(t)


def _queries(draw: hs.DrawFn, small: bool) -> Any:
    layer, *rest = wide(draw, small)
    for key in "kvo":
        layer[key] = {**layer[key], "lora": None}
    return [layer, *rest]


@fact(FORWARD, "merged queries", "LORA-3 ATT-2",
      "the queries' branch folded into their W and b gives the same outputs", nets(_queries),
      "LoRA on q alone, rank 2")  # fmt: skip
def _merged_queries(t: Trial) -> None:
    check_merged(t)


def _rows(t: Trial, key: str, change: Any) -> dict[str, Any]:
    """Return changes of what makes the rows of a projection's output."""
    return {f"0.{key}.{name}": change for name in ("W", "b", "B", "bB")}


def _other_queries(t: Trial) -> dict[str, Any]:
    """Return changes of every query's projection."""
    found = {}
    for linear in linears(spec_of(t)):
        if linear["name"].endswith(".q"):
            found[f"{linear['name']}.W"] = lambda W: W + 1 + np.arange(W.size).reshape(W.shape)
    return found


@fact(FORWARD, "heads permuted", "ATT-2", "the order of the heads changes nothing", nets(_plain),
      "2 heads")  # fmt: skip
def _heads(t: Trial) -> None:
    spec = spec_of(t)
    heads, width = spec[0]["heads"], spec[0]["q"]["out"]
    if heads < 2:
        raise Unsuitable("one head")
    order = np.roll(np.arange(width), width // heads)
    changes: dict[str, Any] = {}
    for key in "qkv":
        changes |= _rows(t, key, lambda a: a[order])
    changes |= {f"0.o.{name}": (lambda a: a[:, order]) for name in ("W", "A")}
    same(t, t.run(), run(t, changes))


@fact(FORWARD, "a head's own scores", "ATT-2", "a head without values has no use for its queries",
      nets(_plain), "2 heads")  # fmt: skip
def _own(t: Trial) -> None:
    spec = spec_of(t)
    heads, width = spec[0]["heads"], spec[0]["q"]["out"]
    if heads < 2:
        raise Unsuitable("one head")
    last = slice(width - width // heads, None)

    def gone(a: Array) -> Array:
        a[last] = 0
        return a

    def moved(a: Array) -> Array:
        a[last] += 2
        return a

    without = _rows(t, "v", gone)
    same(t, run(t, without), run(t, without | {"0.q.W": moved, "0.q.b": moved}))


@fact(FORWARD, "heads repeated", "ATT-2", "a head twice, each with half of o, is that head once",
      nets(_plain))  # fmt: skip
def _twice(t: Trial) -> None:
    _repeated(t, heads=2, queries=1.0)


@fact(FORWARD, "features repeated", "ATT-2",
      "each head's features four times, with half the queries, give the same scores: 1 / sqrt(c)",
      nets(_plain))  # fmt: skip
def _four(t: Trial) -> None:
    _repeated(t, features=4, queries=0.5)


def _repeated(t: Trial, heads: int = 1, features: int = 1, queries: float = 1.0) -> None:
    """Compare with attention whose heads or features are repeated."""
    spec = [dict(layer) for layer in spec_of(t)]
    layer = spec[0] = {**spec[0], "heads": heads * spec[0]["heads"]}
    width, c = layer["q"]["out"], layer["q"]["out"] // spec_of(t)[0]["heads"]
    times = heads * features
    columns = np.arange(width).reshape(-1, 1, c).repeat(heads, axis=1).reshape(-1, c)
    index = np.tile(columns, (1, features)).reshape(-1)
    for key in "qkvo":
        layer[key] = {**layer[key], "in" if key == "o" else "out": width * times}
    weights = changed(t)
    for key in "qkv":
        for name in ("W", "b", "B", "bB"):
            scale = queries if key == "q" else 1.0
            weights[f"0.{key}.{name}"] = scale * weights[f"0.{key}.{name}"][index]
    for name in ("W", "A"):
        weights[f"0.o.{name}"] = weights[f"0.o.{name}"][:, index] / times
    same(t, t.run(), t.run(None, {"spec": spec}, weights=weights))


@fact(FORWARD, "equal keys", "ATT-2", "where all keys are equal, queries have no effect",
      nets(_plain))  # fmt: skip
def _keys(t: Trial) -> None:
    flat = branches(t, ("k",))
    same(t, run(t, flat), run(t, flat | _other_queries(t)))


# --------------------------------------------------------------------------------------- causal


def _causal(draw: hs.DrawFn, small: bool) -> Any:
    width = draw(hs.integers(1, 2))
    return [attention(1, width, causal=True), {"kind": "pool", "how": "cls"}, head(width)]


@fact(FORWARD, "causal", "ATT-3", "with a causal mask the first token sees no other", nets(_causal),
      "causal attention, first token pooled")  # fmt: skip
def _first(t: Trial) -> None:
    (x,) = t.wide("x")
    later = np.concatenate([x[:, :1], x[:, :1] + 1, x[:, :1] - 2], axis=1)
    other = np.concatenate([x[:, :1], x[:, :1] - 3, x[:, :1] + 5], axis=1)
    same(t, t.run(x=later), t.run(x=other))


@fact(FORWARD, "one token", "ATT-3", "a token alone sees itself: causal or not is the same",
      nets(_causal), "one token")  # fmt: skip
def _alone(t: Trial) -> None:
    x = t.wide("x")[0][:, :1]
    same(t, t.run(x=x), run(t, spec=replaced(spec_of(t), "attention", causal=False), x=x))


# ---------------------------------------------------------------------------------------- texts


def _text(draw: hs.DrawFn, small: bool) -> Any:
    width = draw(hs.integers(1, 2))
    inputs = draw(hs.sampled_from([["ids"], ["ids", "mask"], ["ids", "types"]]))
    embedding = {
        "kind": "embedding", "name": "e", "vocab": 4, "width": width, "positions": 6, "types": 2,
        "pad": 0, "inputs": inputs,
    }  # fmt: skip
    if draw(hs.booleans()):
        embedding["start"] = 1
    first: list[dict[str, Any]] = []
    if draw(hs.booleans()):
        first = [{"kind": "prepend", "name": "cls", "width": width, "count": 1}]
    return [embedding, *first, attention(1, width), {"kind": "pool", "how": "mean"}, head(width)]


def _channels(t: Trial) -> tuple[list[str], dict[str, Array]]:
    """Return the channels' names, and each (batch, 3) of real tokens."""
    names, (x,) = spec_of(t)[0]["inputs"], t.wide("x")
    each = {name: x if x.ndim == 2 else x[:, k] for k, name in enumerate(names)}
    batch = len(x)
    ids = 1 + (np.arange(3) + np.arange(batch)[:, None] + each["ids"][:, :1]) % 3
    found = {"ids": ids, "mask": np.ones((batch, 3)), "types": (ids + np.arange(3)) % 2}
    return names, {name: found[name] for name in names}


def _joined(names: list[str], each: dict[str, Array]) -> Array:
    return each["ids"] if len(names) == 1 else np.stack([each[name] for name in names], axis=1)


def _padded(each: dict[str, Array], ids: float, *, front: bool = False) -> dict[str, Array]:
    """Put one token of padding at an end."""
    extra = {"ids": ids, "mask": 0.0, "types": 0.0}
    found = {}
    for name, a in each.items():
        more = np.full((len(a), 1), extra[name])
        found[name] = np.concatenate([more, a] if front else [a, more], axis=1)
    return found


@fact(FORWARD, "padding", "ATT-3 ATT-4 ATT-6", "padding at the end changes nothing",
      nets(_text), "texts")  # fmt: skip
def _padding(t: Trial) -> None:
    names, each = _channels(t)
    plain = t.run(x=_joined(names, each))
    for ids in (0.0, 2.0) if "mask" in names else (0.0,):
        same(t, plain, t.run(x=_joined(names, _padded(each, ids))))


@fact(FORWARD, "padding in front", "ATT-4",
      "padding in front changes nothing where positions count real tokens alone", nets(_text),
      "texts with RoBERTa's positions")  # fmt: skip
def _front(t: Trial) -> None:
    names, each = _channels(t)
    if spec_of(t)[0].get("start") is None or "mask" in names:
        raise Unsuitable("another rule of positions")
    same(t, t.run(x=_joined(names, each)), t.run(x=_joined(names, _padded(each, 0.0, front=True))))


@fact(FORWARD, "equal values", "ATT-2 ATT-3", "where all values are equal, queries have no effect",
      nets(_text), "texts, with padding too")  # fmt: skip
def _values(t: Trial) -> None:
    names, each = _channels(t)
    flat = branches(t, ("v",))
    for padded in (each, _padded(each, 0.0)):
        x = _joined(names, padded)
        same(t, run(t, flat, x=x), run(t, flat | _other_queries(t), x=x))


@fact(FORWARD, "tables", "ATT-4",
      "a constant moved from one table of the embedding to another changes nothing", nets(_text),
      "texts without padding")  # fmt: skip
def _tables(t: Trial) -> None:
    names, each = _channels(t)
    x = _joined(names, each)
    width = spec_of(t)[0]["width"]
    c = 1 + np.arange(float(width))
    whole = t.run(x=x)
    for table in ("e.position", "e.type"):
        same(t, whole, run(t, {"e.token": lambda a: a + c, table: lambda a: a - c}, x=x))


@fact(FORWARD, "positions in use", "ATT-4", "rows of positions that no token has change nothing",
      nets(_text), "texts")  # fmt: skip
def _positions(t: Trial) -> None:
    names, each = _channels(t)
    start = spec_of(t)[0].get("start")
    first = 0 if start is None else start + 1

    def unused(table: Array) -> Array:
        table[:first] += 3
        table[first + 3 :] -= 5
        return table

    x = _joined(names, each)
    same(t, t.run(x=x), run(t, {"e.position": unused}, x=x))


@fact(FORWARD, "types", "ATT-4", "types exchanged with the rows of their table change nothing",
      nets(_text), "texts with types")  # fmt: skip
def _types(t: Trial) -> None:
    names, each = _channels(t)
    if "types" not in names:
        raise Unsuitable("no types")
    other = {**each, "types": 1 - each["types"]}
    exchanged = run(t, {"e.type": lambda a: a[::-1]}, x=_joined(names, other))
    same(t, t.run(x=_joined(names, each)), exchanged)


@fact(FORWARD, "pooler", "ATT-6 LAY-4", "a pooler's tanh is 1 at 32 as at 64", nets(bert),
      "texts with a pooler")  # fmt: skip
def _pooler(t: Trial) -> None:
    name = next(x["name"] for x in linears(spec_of(t)) if x["name"].endswith("dense"))
    flat = {f"{name}.W": lambda W: 0 * W}
    same(t, *(run(t, flat | {f"{name}.b": lambda b, c=c: 0 * b + c}) for c in (32.0, 64.0)))


@fact(FORWARD, "[CLS] alone", "ATT-6", "where no token sees another, the first alone counts",
      nets(bert), "texts, first token pooled")  # fmt: skip
def _pooled(t: Trial) -> None:
    blind = branches(t, ("v",))
    (x,) = t.wide("x")
    ids = x if x.ndim == 2 else x[:, 0]
    texts = [np.concatenate([ids[:, :1], other + 0 * ids[:, :1], other + 0 * ids[:, :1]], axis=1)
             for other in (1.0, 2.0)]  # fmt: skip
    if x.ndim == 3:
        raise Unsuitable("several channels")
    same(t, *(run(t, blind, x=text) for text in texts))
