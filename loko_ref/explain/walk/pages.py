"""The pages: a run of one filter, and the world of two parameters under several."""

from __future__ import annotations

from typing import Any

from loko_ref.explain.heads import HEADS, KINDS, explain_lte
from loko_ref.explain.sources import FILTERS, TRUE_WEIGHT, WEIGHT, Source, tiny
from loko_ref.explain.steps import explain
from loko_ref.explain.walk.data import Pool, walk
from loko_ref.explain.walk.page import as_html

__all__ = ["of_lte", "of_source", "of_tiny"]


def _labels(walks: list[dict[str, Any]]) -> set[str]:
    lines = [line for one in walks for line in (*one["first"], *one["lines"])]
    return {label for line in lines for label in line["labels"]}


def _document(source: Source, walks: list[dict[str, Any]], pool: Pool) -> dict[str, Any]:
    model = source.model
    return {
        "observation": source.learner.observation,
        "params": [[name, model.weights[name].shape] for name in model.trainable],
        "outputs": model.outputs,
        "walks": walks,
        "pool": pool.items,
    }


def of_source(source: Source, about: str, *, steps: int = 20, skip: int | None = 0) -> str:
    """Return the page of one run.

    Parameters
    ----------
    source : Source
        The run.
    about : str
        A sentence on it.
    steps, skip : int, int or None
        As :func:`loko_ref.explain.explain` takes them.

    Raises
    ------
    InputError
        If the stream is shorter.
    MissingExtraError
        If a package of the extra ``cli`` is missing.
    """
    pool = Pool()
    walks = [walk("LoKO", source, explain(source, steps=steps, skip=skip), pool)]
    title = f"LoKO step by step on {source.name}"
    document = {"title": title, "about": about, **_document(source, walks, pool)}
    return as_html(document, _labels(walks))


def of_tiny(steps: int = 12) -> str:
    """Return the page of the world of two parameters, every filter beside the others.

    Parameters
    ----------
    steps : int
        Number of samples.
    """
    pool, walks = Pool(), []
    for name, options in FILTERS.items():
        source = tiny(steps, **options)
        walks.append(walk(name, source, explain(source, steps=steps), pool))
    document = {
        "title": "LoKO with two parameters",
        "about": "One linear layer, one input, one output, LoRA of rank 1: z = (W + B A) x with "
        f"W = {WEIGHT} frozen, theta = (A, B). The samples come from y = {TRUE_WEIGHT:g} x + noise"
        f", so every (A, B) with A B = {TRUE_WEIGHT - WEIGHT:g} is right.",
        "tiny": {
            "weight": WEIGHT,
            "product": TRUE_WEIGHT - WEIGHT,
            "start": [float(a) for a in source.start.theta],
        },
        **_document(source, walks, pool),
    }
    return as_html(document, _labels(walks), ("walk.js", "tiny.js"))


def of_lte(data: str = "digits", *, steps: int = 24, seed: int = 0) -> str:
    """Return the page of LTE's heads, merges and resets.

    Parameters
    ----------
    data, steps, seed : str, int, int
        As :func:`loko_ref.explain.heads.explain_lte` takes them.
    """
    pool, moments = Pool(), []
    for one in explain_lte(data, steps=steps, seed=seed):
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
        moments.append(
            {
                "kind": one.kind,
                "step": one.step,
                "title": one.title,
                "losses": one.losses.tolist(),
                "loss": one.loss,
                "accuracy": one.accuracy,
                "sites": sites,
            }
        )
    document = {
        "title": f"LTE step by step on {data}",
        "about": f"{HEADS} heads train a network of two layers with LoRA, each on its own part of "
        "every batch. After every sixth step they are merged into the weight W, and reset.",
        "heads": HEADS,
        "kinds": {
            kind: {"equation": equation, "meaning": meaning, "labels": labels}
            for kind, (equation, meaning, labels) in KINDS.items()
        },
        "moments": moments,
        "pool": pool.items,
    }
    labels = {label for _, _, cited in KINDS.values() for label in cited}
    return as_html(document, labels, ("lte.js",))
