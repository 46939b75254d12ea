"""``loko-ref compare online``: which trials there are, in which order, and what they add up to."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loko_ref.checks.fields import Items, Kind, Maybe, Place, Record, choice, real, text, whole
from loko_ref.checks.values import check_whole
from loko_ref.experiments.compare import pool
from loko_ref.experiments.compare.analysis import METRICS, Table, halves
from loko_ref.experiments.compare.documents import (
    as_json,
    check_names,
    number,
    read_plan,
    read_rows,
)
from loko_ref.experiments.compare.learners import FAMILIES, LOKO, Learner, learners
from loko_ref.experiments.compare.streams import QUICK, STREAMS, Stream
from loko_ref.experiments.compare.trials import Job, Trial, work
from loko_ref.files.documents import document

MOST_SEEDS = 1000
"""Most seeds of a comparison."""

TUNED = 2
"""Selection seeds on which the grid is run in full on a transformer."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared."""

    # on which, at how many draws
    streams: Sequence[Stream]
    seeds: Sequence[int]
    learners: Sequence[Learner]
    limit: int | None = None  # most samples of each part

    def about(self) -> dict[str, Any]:
        """Return plain JSON values by which two plans are compared."""
        return {
            "streams": [one.name for one in self.streams],
            "seeds": list(self.seeds),
            "learners": [_learner(one) for one in self.learners],
            "limit": self.limit,
        }

    def wanted(self, stream: Stream, seed: int, table: Table) -> list[Learner] | None:
        """Return who runs on a stream with a seed; None as long as the choice is not made.

        On a transformer the grid runs with two of the selection seeds, and what was best there with
        the others.
        """
        some = [one for one in self.learners if stream.table or not one.dense]
        tuned = halves(self.seeds)[0][:TUNED]
        if not stream.transformer or seed in tuned:
            return some
        grid = [one for one in some if one.method != "loko"]
        whole = {(stream.name, s, one.name) for s in tuned for one in grid}
        if not whole <= table.trials.keys():
            return None
        pools = [[one for one in grid if one.family == f] for f in FAMILIES]
        best = {table.best(stream, m, pool, tuned) for m in METRICS for pool in pools if pool}
        return [one for one in some if one.method == "loko" or one.name in best]


def _learner(one: Learner) -> dict[str, Any]:
    found = {"name": one.name, "family": one.family, "method": one.method}
    return found | {"options": list(_words(one.options)), "ratio": one.ratio}


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield options as the command line has them: ``p0.A=0.2``."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{word}" for word in _words(value))
        else:
            yield f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def plan(
    *,
    quick: bool = False,
    streams: Sequence[str] = (),
    seeds: int | None = None,
    limit: int | None = None,
) -> Plan:
    """Return what is compared.

    Parameters
    ----------
    quick : bool
        Four streams, four seeds, 150 samples at most of each part, every third rate.
    streams : sequence of str
        Names of streams, in place of all.
    seeds : int, optional
        How many seeds, from 0; 10, or 4.
    limit : int, optional
        Most samples of each part.

    Raises
    ------
    InputError
        If a stream is unknown, or a count is out of range.

    Examples
    --------
    >>> len(plan().streams), len(plan(quick=True).streams)
    (21, 4)
    """
    known = {one.name: one for one in STREAMS}
    check_names("--stream", streams, list(known))
    count = seeds if seeds is not None else 4 if quick else 10
    check_whole("--seeds", count, high=MOST_SEEDS)
    if limit is not None:
        check_whole("--limit", limit)
    names = streams or (QUICK if quick else tuple(known))
    return Plan(
        streams=[known[name] for name in dict.fromkeys(names)],
        seeds=range(count),
        learners=learners(quick),
        limit=limit if limit is not None else 150 if quick else None,
    )


def compare(
    chosen: Plan,
    *,
    workers: int | None = None,
    before: Sequence[Trial] = (),
    ended: Callable[[Sequence[Trial], int, int], None] | None = None,
) -> Table:
    """Run what is missing.

    Parameters
    ----------
    workers : int, optional
        Processes, each with one BLAS thread; one for each core.
    ended : callable, optional
        Called as ``ended(all trials so far, jobs done, jobs known)``.

    Raises
    ------
    InputError
        If `workers` is below 1.
    """
    count = pool.count(workers)
    table = Table(before, chosen.streams, chosen.seeds)
    done = 0
    while True:
        jobs = _missing(chosen, table)
        if not jobs:
            return table

        def add(job: Job, trials: Sequence[Trial], total: int = done + len(jobs)) -> None:
            nonlocal done
            done += 1
            table.trials.update({one.key: one for one in trials})
            if ended is not None:
                ended(list(table.trials.values()), done, total)

        pool.run(work, jobs, workers=count, ended=add)


def _missing(chosen: Plan, table: Table) -> list[Job]:
    """Return the jobs that can run now; the transformers first, whose choice others wait for."""
    jobs = []
    for stream in sorted(chosen.streams, key=lambda one: not one.transformer):
        for seed in chosen.seeds:
            wanted = chosen.wanted(stream, seed, table) or ()
            left = [w for w in wanted if (stream.name, seed, w.name) not in table.trials]
            if left:
                jobs.append(Job(stream=stream, seed=seed, learners=left, limit=chosen.limit))
    return jobs


# ------------------------------------------------------------------------------------ document


def summary(table: Table, chosen: Plan) -> dict[str, Any]:
    """Return the summary of the comparison, as plain JSON values.

    Parameters
    ----------
    table, chosen
        All trials, and what was compared.

    Returns
    -------
    dict
        For every variant of LoKO the streams on which it is ahead of the first-order grid and of
        AdamW; for the default the differences by stream, steps to AdamW's accuracy, and where it
        diverged; mean ranks; scores by prior variance; curves on the test part; milliseconds of a
        step.
    """
    variants = [one.name for one in chosen.learners if one in LOKO]
    pools = {
        "first-order": [one for one in chosen.learners if one.method != "loko"],
        "AdamW": [one for one in chosen.learners if one.family == "AdamW"],
    }
    rivals = {name: table.rivals(pool) for name, pool in pools.items()}
    default, streams = LOKO[0].name, []
    for stream in table.streams:
        row: dict[str, Any] = {"stream": stream.name, "regression": stream.regression}
        for metric in METRICS:
            rival = rivals["first-order"].get((stream.name, metric))
            scores = table.scores(stream, default, metric, table.reporting)
            row[metric] = {
                "default": number(abs(float(scores.mean()))) if scores.size else None,
                "rival": rival,
                "rival_score": None,
                "difference": None,
            }
            if rival is not None and scores.size:
                other = table.scores(stream, rival, metric, table.reporting)
                row[metric]["rival_score"] = number(abs(float(other.mean())))
                difference = table.difference(stream, metric, default, rival)
                row[metric]["difference"] = as_json(difference)
        adamw = rivals["AdamW"].get((stream.name, "final"))
        row["steps_to_adamw"] = (
            None if adamw is None else number(table.reached(stream, default, adamw))
        )
        streams.append(row)
    mean_ranks, cases = table.ranked()
    spent: dict[str, list[float]] = {}
    for one in table.trials.values():
        spent.setdefault(one.learner, []).append(one.ms)
    return {
        "seeds": {"choosing": list(table.choosing), "reporting": list(table.reporting)},
        "ahead": {
            name: {pool: table.wins(name, found) for pool, found in rivals.items()}
            for name in variants
        },
        "streams": streams,
        "diverged": {name: found for name in variants if (found := table.diverged(name))},
        "ranks": {"cases": cases, "mean": mean_ranks},
        "p0": {
            name: {key: number(value) for key, value in found.items()}
            for name, found in table.sensitivity().items()
        },
        "curves": {stream.name: _curves(table, stream, pools) for stream in table.streams},
        "ms": {name: statistics.median(spent[name]) for name in variants if name in spent},
    }


def _curves(
    table: Table, stream: Stream, pools: Mapping[str, Sequence[Learner]]
) -> dict[str, dict[str, Any]]:
    """Return the curves that are drawn: name -> learner, mean and half width."""
    shown = {"LoKO, recommended": LOKO[0].name, "LoKO, abstract reading": LOKO[1].name}
    for label, some in reversed(list(pools.items())):
        best = table.best(stream, "final", some)
        shown |= {} if best is None else {f"{label} at its best": best}
    found = {label: (name, table.curve(stream, name)) for label, name in shown.items()}
    return {label: {"learner": n, **c} for label, (n, c) in found.items() if c is not None}


def as_document(table: Table, chosen: Plan) -> dict[str, Any]:
    """Return the document of a comparison, whole or so far: it can be gone on from.

    Parameters
    ----------
    table, chosen
        The trials, and what is compared.
    """
    complete = not _missing(chosen, table)
    content: dict[str, Any] = {"plan": chosen.about(), "complete": complete}
    if complete:
        content["summary"] = summary(table, chosen)
    rows = [dataclasses.asdict(one) | {"curve": list(one.curve)} for one in table.trials.values()]
    return document("compare-online", content | {"trials": rows})


def condensed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a document of ``--json`` without its trials, and with what they add up to so far.

    The summary is of those streams of the plan that have all of their trials.

    Parameters
    ----------
    path : path-like
        The file, of a comparison at its end or not.

    Raises
    ------
    InputError
        If the file is none, is damaged, or is of other streams or learners than this version's.
    """
    known = {one.name: one for one in STREAMS}
    by_name = {one.name: one for one in learners(quick=False)}
    learner = Record({"name": choice(*by_name), "family": text(), "method": text(),
                      "options": Items(text()), "ratio": real()})  # fmt: skip
    fields: dict[str, Kind] = {"streams": Items(choice(*known)), "seeds": Items(whole()),
                               "learners": Items(learner), "limit": Maybe(whole(1))}  # fmt: skip
    about, made = read_plan(path, "compare-online", Record(fields))
    if LOKO[0].name not in (one["name"] for one in about["learners"]):
        place = Place(argument="FILE", path=str(path))
        raise place.error("plan.learners", "none of that name", f"'{LOKO[0].name}', the default")
    chosen = Plan(
        streams=[known[name] for name in about["streams"]],
        seeds=about["seeds"],
        learners=[by_name[one["name"]] for one in about["learners"]],
        limit=about["limit"],
    )
    every = Table(read(path, chosen, "FILE"), chosen.streams, chosen.seeds)
    open_ = {job.stream.name for job in _missing(chosen, every)}
    ended = [one for one in chosen.streams if one.name not in open_]
    trials = [one for one in every.trials.values() if one.stream not in open_]
    content = {"plan": chosen.about(), "complete": not open_}
    found = summary(Table(trials, ended, chosen.seeds), chosen)
    return document("compare-online", content | {"summary": found}) | made


def read(path: str | os.PathLike[str], chosen: Plan, argument: str = "--resume") -> list[Trial]:
    """Read the trials of an interrupted comparison; as :func:`documents.read_rows`."""
    rows = read_rows(path, "compare-online", chosen.about(), "trials", _kind(chosen), argument)
    points: dict[str, int] = {}
    for k, row in enumerate(rows):
        count = len(row["curve"])
        if not count or points.setdefault(row["stream"], count) != count:
            place = Place(argument=argument, path=str(path))
            required = f"{points.get(row['stream'], 'some')}, as every trial of its stream has"
            raise place.error(f"trials[{k}].curve", f"{count} points", required)
    return [Trial(**{**row, "curve": tuple(row["curve"])}) for row in rows]


def _kind(chosen: Plan) -> Record:
    score = Maybe(real(low=0))
    fields: dict[str, Kind] = {
        "stream": choice(*(one.name for one in chosen.streams)),
        "learner": choice(*(one.name for one in chosen.learners)),
        "seed": whole(high=len(chosen.seeds) - 1),
        "online": score,
        "final": score,
        "curve": Items(score),
        "diverged": Maybe(whole()),
        "ms": real(low=0),
    }
    return Record(fields)
