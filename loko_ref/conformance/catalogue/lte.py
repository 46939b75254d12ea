"""LTE's entries of the catalogue but its runs: the heads' forward pass and the merge.

A run's is in ``operations_lte_run``, which shares the inputs and options here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loko_ref.conformance.catalogue import network_text as operations_network
from loko_ref.conformance.catalogue.entry import Operation, gives, option, takes
from loko_ref.conformance.oracle import lte as lte_oracle
from loko_ref.lte.config import CHOICES
from loko_ref.textbook import lte as lte_plain
from loko_ref.textbook.quantities import origins

SPEC = option("spec", None, operations_network.SPEC)
HEADS = option("heads", None, "number of heads")
MODE = option(
    "mode",
    "lte",
    "lte: each head on its own samples, with a shared weight; mhlora: one network with all heads' "
    "branches, which never merges",
    CHOICES["mode"],
)
SCALING = option(
    "scaling",
    "mean",
    "of mhlora: each branch times alpha/r/heads (mean) or alpha/r (sum)",
    CHOICES["scaling"],
)
RESET = option(
    "reset",
    "none",
    "after the merge: nothing; B = 0 (and bB = 0); B = 0 and A redrawn (and bA = bB = 0). A reset "
    "also forgets what was merged",
    CHOICES["reset"],
)
FACTORS = takes(
    "factors",
    "mapping",
    'all heads\' LoRA factors: "0.A" (heads, r, i), "0.B" (heads, o, r), and with a LoRA bias '
    '"0.bA" (heads, r), "0.bB" (heads, o), for the linear named "0" (an attention\'s "0.q"), and '
    "so on",
)
WEIGHTS = takes(
    "weights",
    "mapping",
    'the shared "0.W" (o, i), "0.b" (o,), and so on, of every linear; of other layers their own',
)


def narrow(labels: Sequence[str], o: Mapping[str, Any]) -> tuple[str, ...]:
    """Return those of an output's labels that hold under the options, all where none is left."""
    one, copies = o.get("mode") == "mhlora", o.get("realisation") == "copies"
    holds = {"LTE-2": one, "LTE-3": not (one or copies), "LTE-4": copies and not one}
    holds |= {"LTE-6": o.get("reset", "none") != "none"}
    if "optimizer" in o:
        holds |= {"LTE-10": o["optimizer"] == "loko"}
    return tuple(k for k in labels if holds.get(k, True)) or tuple(labels)


_FORWARD = Operation(
    name="lte.forward",
    text="every head's outputs with a shared weight: W x + b + branch(factors) - branch(merged)",
    inputs=(
        takes(
            "x",
            "(heads, batch, i); mhlora: (batch, i)",
            "inputs, each head's own samples, each as the first layer takes it",
        ),
        WEIGHTS,
        FACTORS,
        takes(
            "merged",
            "mapping",
            "the factors last merged, named as factors; absent before the first merge",
            "after a merge",
        ),
    ),
    options=(SPEC, HEADS, MODE, SCALING),
    outputs=(
        gives(
            "z",
            "(heads, batch, C); mhlora: (batch, C)",
            "the outputs; a head sees W + delta - delta', delta = (alpha/r) B A",
            "LTE-2 LTE-3",
            "x weights factors merged",
        ),
    ),
    oracle=lte_oracle.forward,
    plain=lte_plain.lte_forward,
    narrow=lambda name, o: narrow(("LTE-2", "LTE-3"), o),
)


def _read(name: str) -> tuple[str, str]:
    """Labels and origins of a quantity of the merge, by the table."""
    flow = lte_plain.merge({"reset": "B"})
    labels = next(q.labels for q in flow if q.name == name)
    return " ".join(labels), " ".join(origins(name, flow)).replace("W_post", "W")


_MERGE = Operation(
    name="lte.merge",
    text="merge the heads of one linear, with or without a reset",
    inputs=(
        takes("W", "(o, i)", "the shared weight"),
        takes("A", "(heads, r, i)", "down factors"),
        takes("B", "(heads, o, r)", "up factors"),
        takes("A_merged", "(heads, r, i)", "down factors as last merged"),
        takes("B_merged", "(heads, o, r)", "up factors as last merged; 0 before the first merge"),
    ),
    options=(
        option("alpha", None, "LoRA's alpha; scale = alpha / r"),
        replace(RESET, choices=("none", "B")),
    ),
    outputs=(
        gives(
            "W",
            "(o, i)",
            "W + mean over heads of (delta - delta'), delta = (alpha/r) B A",
            *_read("W_post"),
        ),
        gives(
            "seen",
            "(heads, o, i)",
            "the weight that each head sees after the merge (and reset): W + delta - delta'",
            *_read("seen"),
        ),
    ),
    oracle=lte_oracle.merge,
    plain=lte_plain.lte_merge,
    narrow=lambda name, o: narrow(_read({"W": "W_post"}.get(name, name))[0].split(), o),
)

LTE = (_FORWARD, _MERGE)
"""Entries in order."""
