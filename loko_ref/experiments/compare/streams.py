"""The streams of ``loko-ref compare online``: shifts, drifts, new classes, noise, transformers.

Shapes: x (samples, i); y (samples,) labels or (samples, 1) targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from loko_ref.experiments.base_network import load_dataset
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.data.bundled import Dataset, Split
from loko_ref.experiments.data.registry import regression


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """One stream: the options of a run, and what changes on the way."""

    name: str  # of tables and pictures
    about: Mapping[str, Any] = field(default_factory=dict)  # fields of `RunConfig`
    then: str | None = None  # the shift that the stream drifts to, under which the test part is
    # at the middle, or with a probability that rises from 0 to 1 between a quarter and three
    # quarters of the stream
    drift: Literal["abrupt", "gradual"] = "abrupt"
    known: int | None = None  # classes that the base part has; the stream has all

    @property
    def regression(self) -> bool:
        """Whether the score is an error, of which less is better."""
        return regression(self.about.get("data", "digits"))

    @property
    def transformer(self) -> bool:
        """Whether the network is one, on which the grid is chosen on two seeds."""
        return self.about.get("network") == "vit" or self.about.get("data") == "topics"

    @property
    def table(self) -> bool:
        """Whether samples are rows of a table: on larger ones a dense filter takes .5 s a step."""
        return self.about.get("data", "digits") not in ("digits", "topics")

    @property
    def begins(self) -> float:
        """Share of the stream before the last shift: steps to an accuracy count from there."""
        return 0.0 if self.then is None else 0.5 if self.drift == "abrupt" else 0.25

    def dataset(self, config: RunConfig) -> Dataset:
        """Load the data of a seed.

        Parameters
        ----------
        config : RunConfig
            With this stream's fields and a seed.
        """
        found = load_dataset(config)
        if self.known is not None:
            base = found.base.y < self.known
            part = Split(x=found.base.x[base], y=found.base.y[base])
            found = dataclasses.replace(found, base=part)
        if self.then is not None:
            later = load_dataset(dataclasses.replace(config, shift=self.then))
            share = np.arange(len(found.stream)) / len(found.stream)
            if self.drift == "abrupt":
                moved = share >= self.begins
            else:
                rng = np.random.default_rng([config.seed, 0xD81F7])
                moved = rng.random(len(share)) < np.clip(2 * share - 0.5, 0, 1)
            x = np.where(moved[:, None], later.stream.x, found.stream.x)
            part = Split(x=x, y=found.stream.y)
            found = dataclasses.replace(found, stream=part, test=later.test)
        return found


def _plain(data: str, *shifts: str) -> list[Stream]:
    return [Stream(name=f"{data} {s}", about={"data": data, "shift": s}) for s in shifts]


def _turned(name: str, then: str | None = None, **more: Any) -> Stream:
    about = {"data": "digits", "shift": "rotate90"} | more.pop("about", {})
    return Stream(name=name, about=about, then=then, **more)


STREAMS: tuple[Stream, ...] = (
    *_plain("digits", "rotate90", "permute", "invert", "noise"),
    *_plain("breast_cancer", "invert", "permute"),
    *_plain("wine", "invert", "permute"),
    *_plain("iris", "invert", "permute"),
    *_plain("diabetes", "invert", "permute", "noise"),
    _turned("digits, wrong labels", about={"label_noise": 0.2}),
    _turned("digits, then invert", "invert"),
    _turned("digits, then permute", "permute"),
    _turned("digits, slowly invert", "invert", drift="gradual"),
    Stream(name="digits, new classes", about={"data": "digits", "shift": "none"}, known=6),
    _turned("vit on digits", about={"network": "vit"}),
    Stream(name="topics noise", about={"data": "topics", "shift": "noise"}),
    Stream(name="topics permute", about={"data": "topics", "shift": "permute"}),
)
"""All streams; each is one pass, one sample at a time, over shifted real data."""

QUICK = ("digits rotate90", "wine permute", "iris invert", "diabetes permute")
"""Streams of ``--quick``."""
