"""A comparison's document summarised in a few sentences, each number of it computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loko_ref.experiments.compare.analysis import METRICS, critical_difference

NOT_MADE = "No result of `loko-ref compare {}` is kept with this version yet."
"""What stands in place of a headline where there is no document."""

Row = Mapping[str, Any]


def unfinished(document: Row) -> list[str]:
    """Return the streams, or tasks, that were planned and have not all of their runs.

    Parameters
    ----------
    document : mapping
        Of :func:`online.condensed` or :func:`lte_report.condensed`.
    """
    plan, summary = document["plan"], document["summary"]
    if "tasks" in plan:
        return [name for name in plan["tasks"] if name not in summary]
    done = {row["stream"] for row in summary["streams"]}
    return [name for name in plan["streams"] if name not in done]


def behind(summary: Row) -> list[tuple[str, str, Row]]:
    """Return where the default is not ahead of the best rival on the mean.

    Parameters
    ----------
    summary : mapping
        Of an online comparison.

    Returns
    -------
    list of (str, str, mapping)
        Stream, metric, and the entry of that metric.
    """
    ahead = _ahead(summary)["first-order"]
    return [
        (row["stream"], metric, row[metric])
        for row in summary["streams"]
        for metric in METRICS
        if row["stream"] not in ahead[metric]
    ]


def _ahead(summary: Row) -> Row:
    found: Row = summary["ahead"][next(iter(summary["ahead"]))]  # the default is the first
    return found


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _decided(summary: Row, sign: int) -> int:
    """Count streams and metrics whose whole interval is above 0, or below."""
    ends = [row[metric]["difference"] for row in summary["streams"] for metric in METRICS]
    bounds = [one["low" if sign > 0 else "high"] for one in ends if one is not None]
    return sum(bound is not None and sign * bound > 0 for bound in bounds)


def online(document: Row | None) -> list[str]:
    """Return the sentences of an online comparison; the first is the one in README.

    Parameters
    ----------
    document : mapping or None
        Of :func:`online.condensed`, if there is one.
    """
    if document is None:
        return [NOT_MADE.format("online")]
    plan, summary = document["plan"], document["summary"]
    streams, seeds = summary["streams"], summary["seeds"]
    total = len(streams)
    if not total:
        return ["No stream of the comparison has all of its runs yet."]
    grid = sum(one["method"] != "loko" for one in plan["learners"])
    length = "" if plan["limit"] is None else f", of at most {plan['limit']} samples"
    left = unfinished(document)
    rest = f" ({len(left)} more are planned and not finished)" if left else ""
    first, adamw = (_ahead(summary)[pool] for pool in ("first-order", "AdamW"))
    default = next(iter(summary["ahead"]))
    cases, same = len(METRICS) * total, seeds["choosing"] == seeds["reporting"]
    reporting = "the same" if same else _count(len(seeds["reporting"]), "other", "others")
    lost, runs = len(summary["diverged"].get(default, ())), total * len(plan["seeds"])
    won = [len(first[key]) for key in ("online", "final", "both")]
    over = [len(adamw[key]) for key in ("online", "final", "both")]
    sentences = [
        f"On {_count(total, 'stream', 'streams')} of shifted real data{length}{rest}, LoKO at one "
        f"setting (`{default}`) is ahead of the best of {grid} first-order settings, chosen anew "
        f"for each stream and metric, on {won[0]} in online score, {won[1]} in final score and "
        f"{won[2]} in both; {lost} of its {runs} runs diverged.",
        f"Of the best AdamW setting it is ahead on {over[0]}, {over[1]} and {over[2]}.",
        f"The rivals' settings are chosen on {_count(len(seeds['choosing']), 'seed', 'seeds')}, "
        f"all is reported on {reporting}; of the {cases} differences to the best rival "
        f"{_decided(summary, 1)} are above 0 with their whole 95 % interval, "
        f"{_decided(summary, -1)} below.",
    ]
    mean = summary["ranks"]["mean"]
    if default in mean and len(mean) > 1:
        place = 1 + sum(rank < mean[default] for rank in mean.values())
        width = critical_difference(len(mean), summary["ranks"]["cases"])
        sentences.append(
            f"Its mean rank is {mean[default]:.2f}, place {place} of {len(mean)} learners "
            f"(critical difference {width:.2f})."
        )
    reached = [row["steps_to_adamw"] for row in streams]
    half = sum(share is not None and share <= 0.5 for share in reached)
    sentences.append(
        f"It reaches the final score of the tuned AdamW in at most half of the steps on {half} "
        f"of {total}."
    )
    return sentences


VERDICTS = {
    "confirmed": "confirmed",
    "refuted here": "refuted here",
    "open": "not decided",
    "not tried": "not tried",
}
"""Verdict of a claim -> in words."""


def _verdicts(claims: Sequence[Row]) -> str:
    found = [one["verdict"] for one in claims]
    counts = (f"{found.count(key)} {words}" for key, words in VERDICTS.items() if key in found)
    return ", ".join(counts)


def lte(document: Row | None) -> list[str]:
    """Return the sentences of a comparison of LTE; the first is the one in README.

    Parameters
    ----------
    document : mapping or None
        Of :func:`lte_report.condensed`, if there is one.
    """
    if document is None:
        return [NOT_MADE.format("lte")]
    plan, summary = document["plan"], document["summary"]
    every = [one for found in summary.values() for one in found["claims"]]
    if not every:
        return ["No task of the comparison has all of its runs yet."]
    tasks = [f"{task}: {_verdicts(found['claims'])}." for task, found in summary.items()]
    left = unfinished(document)
    rest = f"Planned and not finished: {', '.join(left)}."
    return [
        f"Of {len(every)} checks of LTE's claims on {_count(len(summary), 'task', 'tasks')} "
        f"({plan['steps']} steps, {len(plan['seeds'])} seeds): {_verdicts(every)}.",
        *tasks,
        *([rest] if left else []),
    ]
