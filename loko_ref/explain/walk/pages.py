"""The pages: a run of one filter, and the world of two parameters under several."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from loko_ref.errors import InputError
from loko_ref.explain.heads import KINDS, RESETS, HeadsRun, Moment, explain_lte
from loko_ref.explain.quantities import Frame
from loko_ref.explain.sources import (
    FILTERS,
    SOLVES,
    TRUE_WEIGHT,
    WEIGHT,
    WRONG_WEIGHT,
    Source,
    tiny,
    tiny_classes,
)
from loko_ref.explain.steps import Step, explain
from loko_ref.explain.walk.data import Pool, lines, too_long, walk
from loko_ref.explain.walk.page import as_html

__all__ = ["of_lte", "of_recording", "of_source", "of_tiny"]


MOST = 1_000_000
"""Bytes of a page at most."""

USUAL = 20
"""Steps of a page where none are asked for."""

SPARE = 20_000
"""Bytes of them that a walk leaves to its curves."""


def _page(title: str, about: str, walks: list[dict[str, Any]], pool: Pool, **more: Any) -> str:
    described = [line for one in walks for sort in one["lines"] for line in sort]
    labels = {label for line in described for label in line["labels"]}
    document = {"title": title, "about": about, "walks": walks, "pool": pool.items, **more}
    return as_html(document, labels, ("walk.js", "tiny.js") if more else ("walk.js",))


def _empty(title: str, about: str, opening: list[tuple[Frame, Step]], **more: Any) -> Pool:
    """Return the pool of a page that holds what all its steps share: equations, derivations."""
    walks = [{"lines": [lines(step, frame)]} for frame, step in opening]
    return Pool(MOST - SPARE - len(_page(title, about, walks, Pool(0), **more).encode()))


def of_source(
    source: Source, about: str, *, steps: int | None = None, skip: int | None = 0
) -> tuple[str, int]:
    """Return the page of one run.

    Parameters
    ----------
    source : Source
        The run.
    about : str
        A sentence on it.
    steps, skip : int, optional
        As :func:`loko_ref.explain.explain` takes them; by default `USUAL` steps, or as many as
        there are and the page holds.

    Returns
    -------
    (str, int)
        The page, below 1 MB, and its number of steps.

    Raises
    ------
    InputError
        If the stream is shorter, or the page cannot hold the steps.
    MissingExtraError
        If a package of the extra ``cli`` is missing.
    """
    title = f"LoKO step by step on {source.name}"
    count = max(1, min(USUAL, source.steps - (skip or 0))) if steps is None else steps
    found = explain(source, steps=count, skip=skip)
    first = next(found)
    pool = _empty(title, about, [(source.frame, first)])
    found = itertools.chain([first], found)
    one = walk("LoKO", source.frame, found, pool, source.score, asked=steps)
    return _page(title, about, [one], pool), len(one["steps"])


def of_recording(frame: Frame, steps: Sequence[Step]) -> str:
    """Return the page of a recording.

    Parameters
    ----------
    frame, steps
        As :func:`loko_ref.explain.recorded.explain_recording` returns them.

    Raises
    ------
    InputError
        If the page cannot hold the steps.
    """
    wrong = [step for step in steps if step.wrong]
    about = f"{len(steps)} recorded steps. "
    if wrong:
        about += f"The first wrong quantity: {wrong[0].outcome[0]}"
    else:
        about += "Every recorded quantity is what those recorded before it give."
    title = f"The recording {frame.name}"
    pool = _empty(title, about, [(frame, steps[0])])
    return _page(title, about, [walk("recorded", frame, steps, pool, asked=len(steps))], pool)


def of_tiny(steps: int = 12) -> str:
    """Return the page of the world of two parameters, every filter beside the others.

    Parameters
    ----------
    steps : int
        Number of samples.

    Raises
    ------
    InputError
        If the page cannot hold the steps.
    """
    title, walks = "LoKO with two parameters", list[dict[str, Any]]()
    about = (
        "One linear layer, one input, LoRA of rank 1: u = (W + B A) x with W frozen, theta = "
        f"(A, B). First y is real, z = u, W = {WEIGHT:g} and y = {TRUE_WEIGHT:g} x + noise: every "
        f"(A, B) with A\u00a0B\u00a0=\u00a0{TRUE_WEIGHT - WEIGHT:g} is right. Then y is one of two "
        f"classes, z = (u, -u), and W = {WRONG_WEIGHT:g}: a confident and wrong prediction."
    )
    sources = [(name, tiny(steps, **options), WEIGHT) for name, options in FILTERS.items()]
    sources += [(name, tiny_classes(steps, solve), WRONG_WEIGHT) for name, solve in SOLVES.items()]
    runs = [list(explain(source, steps=steps)) for _, source, _ in sources]
    opening = [(source.frame, run[0]) for (_, source, _), run in zip(sources, runs, strict=True)]
    pool = _empty(title, about, opening, tiny=True)
    left, pool.left = pool.left, sys.maxsize
    for (name, source, weight), found in zip(sources, runs, strict=True):
        one = walk(name, source.frame, found, pool, source.score, asked=steps)
        world: dict[str, Any] = {"weight": weight, "product": TRUE_WEIGHT - weight}
        world["start"] = [float(a) for a in source.start.theta]
        if not source.regression:
            world["fixed"] = [_fixed_point(step) for step in found]
        walks.append({**one, "world": world})
    taken = np.reshape(pool.taken, (len(runs), steps)).sum(axis=0).cumsum()
    if taken[-1] > left:
        raise too_long(steps, int((taken <= left).sum()))
    return _page(title, about, walks, pool, tiny=True)


def _fixed_point(step: Step) -> dict[str, Any]:
    """Return z, y and G = Z P Z' of a step, of which v = y - softmax(z + G v) is made.  [OBS-9]."""
    by = {q.key: q.value for q in step.quantities}
    G = by["Z"] @ by["p_pred"] @ by["Z"].T
    v = by["v"].tolist() if "v" in by else None
    return {"z": by["z"].ravel().tolist(), "y": by["y"].tolist(), "G": G.tolist(), "v": v}


def of_lte(run: HeadsRun) -> str:
    """Return the page of LTE's heads, merges and resets, below 1 MB.

    Parameters
    ----------
    run : HeadsRun
        As :func:`loko_ref.explain.heads.explain_lte` takes it.

    Raises
    ------
    InputError
        If the run cannot be made, or would not fit the page.
    """
    labels = {label for _, _, cited in KINDS.values() for label in cited}
    document: dict[str, Any] = {
        "title": f"LTE step by step on {run.data}",
        "about": f"{run.heads} {'head trains' if run.heads == 1 else 'heads train'} a network of "
        "two layers with LoRA, each on its own part of every batch. After every "
        f"{run.merge_every} steps they are merged into the weight W"
        f"{'' if run.reset == 'none' else ', and reset (' + RESETS[run.reset] + ')'}.",
        "heads": run.heads,
    }
    shared = as_html(document | {"kinds": KINDS}, labels, ("lte.js",))
    pool, moments = Pool(MOST - len(shared.encode())), []
    for one in explain_lte(run):
        before = len(pool.items)
        moments.append(_moment(one, pool))
        document["rank"] = next(iter(one.sites.values())).A.shape[1]
        if not pool.fits(moments[-1], before):
            required = f"at most {one.step - 1} with these heads and this rank and data"
            raise InputError("steps", run.steps, required, "more than a page of 1 MB can show")
    document["kinds"] = {
        kind: {"equation": equation, "meaning": meaning, "labels": labels_}
        for kind, (equation, meaning, labels_) in KINDS.items()
        if any(one["kind"] == kind for one in moments)
    }
    return as_html(document | {"moments": moments, "pool": pool.items}, labels, ("lte.js",))


def _moment(one: Moment, pool: Pool) -> dict[str, Any]:
    sites = {}
    for name, view in one.sites.items():
        N, r, i = view.A.shape
        sites[name] = {
            "A": pool.add(view.A.reshape(N * r, i)),
            "B": pool.add(view.B.transpose(0, 2, 1).reshape(N * r, -1)),
            "update": pool.add(view.update),
            "overlap": pool.add(view.overlap),
            "singular": [float(f"{s:.6g}") for s in view.singular],
            "rank": view.rank,
            "pending": view.pending.tolist(),
        }
    return {
        "kind": one.kind,
        "step": one.step,
        "title": one.title,
        "losses": one.losses.tolist(),
        "loss": one.loss,
        "accuracy": one.accuracy,
        "sites": sites,
    }
