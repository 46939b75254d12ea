"""A network in the catalogue: the option ``spec``, ``x`` and ``weights``, kind by kind.

Written for someone who implements it in another language and has nothing but this text.
"""

from __future__ import annotations

FLAT = (
    "the network, a list of layers in order, each a dict: "
    '{"kind": "linear", "name": "0", "in": i, "out": o, "bias": true, '
    '"lora": {"r": r, "alpha": alpha, "bias": false}} ("lora" may be missing or null: no branch), '
    'or {"kind": "relu" | "tanh" | "gelu" | "softmax" | "log_softmax"}. A linear with LoRA is '
    "y = W x + b + (alpha/r) (B (A x + bA) + bB); relu, tanh, gelu act element by element, relu's "
    "derivative at 0 is 0, gelu is exact (erf); softmax and log_softmax act over the last axis. "
    'With "bias": false there is no b; with the LoRA\'s no bA, bB'
)
"""The option ``spec`` where layers hold no other."""

SPEC = (
    FLAT + ". Transformers have further kinds: layernorm, attention, residual, embedding, "
    "patchify, prepend, positions, pool, gelu_tanh; 'layers of a spec', below, describes every "
    "kind. An implementation without one of them declines the cases that hold it"
)
"""The option ``spec``."""

LAYERS = """\
layers of a spec
  A layer is a dict: its kind, then the keys named here; those in brackets may be missing, and are
  then what stands after the =. NAME is the value of "name"; the arrays of a layer are entries of
  weights. All arrays but A, B, bA, bB are frozen, unless train is "weights". Vectors are columns:
  y = W x is, for rows, y = x W'. t counts the tokens of a sample, d is the width of a token.

  x, by the first layer (loko.run: behind a leading axis of steps)
    embedding     token ids: (batch, t), or (batch, channels, t) if "inputs" names several
                  channels; whole numbers held in the run's dtype (3.0 is id 3)
    patchify      images: (batch, channels, h, w) or (batch, channels*h*w), the same numbers
    any other     (batch, t, d) if an attention, prepend, positions or pool is anywhere in the
                  spec, else (batch, i)
  From a pool on there is one vector a sample; the last layer gives z (batch, C).

  linear: name, in, out, [bias = true], [lora = null]; lora: {r, alpha, [bias = false]}
    NAME.W (out, in); with bias NAME.b (out,); with lora NAME.A (r, in), NAME.B (out, r); with the
    lora's bias NAME.bA (r,), NAME.bB (out,)
    y = W x + b + (alpha/r) (B (A x + bA) + bB), each token by itself  [LAY-1] [LAY-2] [LAY-3]

  relu, tanh, gelu, gelu_tanh, softmax, log_softmax: no keys
    relu max(x, 0), its derivative at 0 is 0; gelu x (1 + erf(x / sqrt 2)) / 2; gelu_tanh
    x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2; softmax and log_softmax over the last axis
    [LAY-4] [LAY-5] [LAY-6] [LAY-11] [LAY-7] [LAY-8]

  layernorm: name, width, [eps = 1e-5], [affine = true]
    with affine NAME.g (width,), NAME.b (width,); without, g = 1 and b = 0
    y = g (x - mean) / sqrt(var + eps) + b, of each token (or vector) by itself: mean over the
    last axis, var the mean of (x - mean)^2 (over width, not width - 1)  [ATT-1]

  attention: name, heads, q, k, v, o, [causal = false]
    q, k, v, o are linears without "kind" and "name"; their names are NAME.q, NAME.k, NAME.v,
    NAME.o (arrays NAME.q.W, NAME.q.b, NAME.q.A and so on); o's "in" is the "out" of q, k, v
    q, k, v of x (batch, t, q's out); head h has the columns h*c to (h+1)*c - 1 of each,
    c = (q's out) / heads. In each sample and head: s = q k' / sqrt c (t, t), row j for query j;
    a = softmax of each row over the keys that the query sees; y = a v. The heads' y side by side
    in their order, (batch, t, q's out), then o  [ATT-2]
    A query sees every key, but not: a key that is padding (the mask, below); with causal, a key
    behind it (key index > query index; its own it sees). A key not seen has weight exactly 0. A
    query that sees no key gives y = 0 (before o), and derivative 0  [ATT-3]

  residual: layers, a list as a spec is
    y = x + layers(x)  [ATT-7]

  embedding, the first layer: name, vocab, width, positions, [types = 0], [pad = null],
    [start = null], [inputs = ["ids"]]
    NAME.token (vocab, width), NAME.position (positions, width); with types > 0 also
    NAME.type (types, width)
    y = token[id] + position[row] + type[type], rows of the tables. inputs names the channels of
    x, of "ids", "types", "mask", in their order. Without a channel "types" every type is 0.
    A token is real if its id is not pad (with pad null: always). row: without start, j for token
    j = 0, 1, ...; with it start + (the number of real tokens up to and including j) for a real
    token, start for one that is not. The mask that attention and pool use: the channel "mask",
    1 for a token that counts and 0 for padding; without that channel the real tokens; with
    neither the channel nor pad there is none, and all count  [ATT-4]

  patchify, the first layer: image [channels, h, w], patch [ph, pw]
    (batch, (h/ph)*(w/pw), channels*ph*pw): patches row by row from the upper left, each flattened
    as (channels, ph, pw), the last index running fastest  [ATT-5]

  prepend: name, width, [count = 1]
    NAME.token (count, width): put before each sample's tokens; they count in the mask  [ATT-5]

  positions: name, width, count
    NAME.position (count, width): row j is added to token j = 0, 1, ...; t <= count  [ATT-4]

  pool: how, "cls" or "mean"
    cls: the first token; mean: the mean of the tokens that count by the mask (one at least does)
    [ATT-6]

  more outputs, of model.forward, model.jacobian, loko.step and loko.run (behind the steps there);
  those that are returned are judged, before z, so that a fault is found in its layer
    z.NAME            what a layer gives in the forward pass, at the prior theta: (batch, width) or
                      (batch, t, width); of an attention behind its o, of its linears z.NAME.q,
                      z.NAME.k, z.NAME.v. A layer without a name is called by its place in its list,
                      0, 1, ..., behind the branch's name and a dot inside a residual (z.1.0); where
                      a named layer is called so, by place:kind (z.1:tanh)
    scores.NAME       an attention's q k' / sqrt c, (batch, heads, t, t), before anything is masked
    weights.NAME      its softmax over the keys seen, (batch, heads, t, t); 0 for a key not seen

  theta: the factors A, B (then bA, bB) of one linear, each row-major, then the next linear's, in
  the order of the spec; an attention's are q, k, v, o; a residual's layers stand where it
  stands. With train = "weights" every other array in the same order of layers: W, b of a linear;
  g, b of a layernorm; token, position, type of an embedding; token of a prepend; position of a
  positions; those that a layer does not have are left out  [LORA-4]
"""
"""What ``loko-ref operations`` prints below the operations that take a spec."""
