"""``loko-ref compare lte``: what is run, its document, and what the paper's claims are worth."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loko_ref.checks.fields import Items, Kind, Maybe, Record, choice, real, text, whole
from loko_ref.checks.values import check_whole
from loko_ref.experiments.compare import pool
from loko_ref.experiments.compare.analysis import paired
from loko_ref.experiments.compare.documents import as_json, check_names, read_plan, read_rows
from loko_ref.experiments.compare.lte import (
    CLAIMS,
    FULL,
    LORA,
    RATES,
    SETTINGS,
    TASKS,
    Run,
    judge,
    missing,
    rows,
    work,
)
from loko_ref.files.documents import document

MOST_SEEDS = 1000
"""Most seeds of a comparison."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared: tasks, seeds, and how long."""

    tasks: Sequence[str]
    seeds: Sequence[int]
    steps: int
    limit: int | None = None

    def about(self) -> dict[str, Any]:
        """Return plain JSON values by which two plans are compared."""
        return {
            "tasks": list(self.tasks),
            "seeds": list(self.seeds),
            "settings": [one.name for one in SETTINGS],
            "steps": self.steps,
            "limit": self.limit,
        }

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Those of ``loko-ref lte``."""
        return {"steps": self.steps, "limit": self.limit}


def plan(
    *,
    quick: bool = False,
    tasks: Sequence[str] = (),
    seeds: int | None = None,
    steps: int | None = None,
    limit: int | None = None,
) -> Plan:
    """Return what is compared.

    Parameters
    ----------
    quick : bool
        The perceptron alone, 120 steps, 4 seeds.
    tasks : sequence of str
        Of ``TASKS``, in place of all.
    seeds, steps, limit : int, optional
        How many seeds, from 0 (4); steps of each run (480, or 120); most samples of each part.

    Raises
    ------
    InputError
        If a task is unknown, or a count is out of range.
    """
    check_names("--task", tasks, list(TASKS))
    for option, value in (("--steps", steps), ("--limit", limit)):
        if value is not None:
            check_whole(option, value)
    check_whole("--seeds", 4 if seeds is None else seeds, high=MOST_SEEDS)
    chosen = tuple(dict.fromkeys(tasks)) or tuple(TASKS)[: 1 if quick else None]
    length = steps if steps is not None else 120 if quick else 480
    return Plan(tasks=chosen, seeds=range(seeds or 4), steps=length, limit=limit)


def compare(
    chosen: Plan,
    *,
    workers: int | None = None,
    before: Sequence[Run] = (),
    ended: Callable[[Sequence[Run], int, int], None] | None = None,
) -> list[Run]:
    """Run what is missing.

    Parameters
    ----------
    workers : int, optional
        Processes, each with one BLAS thread; one for each core.
    ended : callable, optional
        Called as ``ended(all runs so far, done, known)``.
    """
    count, found = pool.count(workers), list(before)
    while jobs := missing(found, chosen.tasks, chosen.seeds, chosen.arguments):
        total = len(found) + len(jobs)

        def add(job: Any, one: Run, total: int = total) -> None:
            found.append(one)
            if ended is not None:
                ended(found, len(found), total)

        pool.run(work, jobs, workers=count, ended=add)
    return found


def summary(runs: Sequence[Run], chosen: Plan) -> dict[str, Any]:
    """Return the rows of each task, and the claims.

    Parameters
    ----------
    runs, chosen
        What was done, and what is compared.

    Returns
    -------
    dict
        Task -> ``rows`` (setting, rate, accuracy, the same when full training had ended,
        differences to full training and LoRA, effective rank of W - W_0, seconds, bytes) and
        ``claims`` (text, verdict, difference).
    """
    found: dict[str, Any] = {}
    for task in chosen.tasks:
        table = rows(runs, task, chosen.seeds)
        shown = []
        for row in table.values():
            shown.append({
                "setting": row.setting,
                "rate": row.rate,
                "accuracy": float(row.accuracy.mean()),
                "timed": float(row.timed.mean()),
                "to_full": as_json(paired(row.accuracy, table[FULL].accuracy)),
                "to_lora": as_json(paired(row.accuracy, table[LORA].accuracy)),
                "effective_rank": row.effective_rank,
                "seconds": row.seconds,
                "bytes_sent": row.bytes_sent,
            })  # fmt: skip
        claims = []
        for claim in CLAIMS:
            verdict, difference = judge(claim, table)
            claims.append({"claim": claim.text, "first": claim.first, "second": claim.second,
                           "verdict": verdict, "difference": as_json(difference)})  # fmt: skip
        found[task] = {"rows": shown, "claims": claims}
    return found


def as_document(runs: Sequence[Run], chosen: Plan) -> dict[str, Any]:
    """Return the document of a comparison, whole or so far: it can be gone on from.

    Parameters
    ----------
    runs, chosen
        What was done, and what is compared.
    """
    complete = not missing(runs, chosen.tasks, chosen.seeds, chosen.arguments)
    content: dict[str, Any] = {"plan": chosen.about(), "complete": complete}
    if complete:
        content["summary"] = summary(runs, chosen)
    listed = [dataclasses.asdict(one) for one in runs]
    for row in listed:
        row["curve"] = [list(point) for point in row["curve"]]
    return document("compare-lte", content | {"runs": listed})


def condensed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a document of ``--json`` without its runs, and with what they add up to so far.

    The summary is of those tasks of the plan that have all of their runs.

    Parameters
    ----------
    path : path-like
        The file, of a comparison at its end or not.

    Raises
    ------
    InputError
        If the file is none, is damaged, or is of other tasks or settings than this version's.
    """
    fields: dict[str, Kind] = {"tasks": Items(choice(*TASKS)), "seeds": Items(whole()),
                               "settings": Items(text()), "steps": whole(1),
                               "limit": Maybe(whole(1))}  # fmt: skip
    about, made = read_plan(path, "compare-lte", Record(fields))
    chosen = Plan(**{name: value for name, value in about.items() if name != "settings"})
    runs = read(path, chosen, "FILE")
    open_ = {job.task for job in missing(runs, chosen.tasks, chosen.seeds, chosen.arguments)}
    ended = dataclasses.replace(chosen, tasks=[t for t in chosen.tasks if t not in open_])
    content = {"plan": chosen.about(), "complete": not open_, "summary": summary(runs, ended)}
    return document("compare-lte", content) | made


def read(path: str | os.PathLike[str], chosen: Plan, argument: str = "--resume") -> list[Run]:
    """Read the runs of an interrupted comparison; as :func:`documents.read_rows`."""
    share = real(low=0, high=1)
    fields: dict[str, Kind] = {
        "task": choice(*chosen.tasks),
        "setting": choice(*(one.name for one in SETTINGS)),
        "factor": real(low=min(RATES), high=max(RATES)),
        "seed": whole(high=len(chosen.seeds) - 1),
        "accuracy": share,
        "curve": Items(Items(real(low=0), 2)),
        "seconds": real(low=0),
        "effective_rank": Maybe(real(low=0)),
        "bytes_sent": whole(),
    }
    found = read_rows(path, "compare-lte", chosen.about(), "runs", Record(fields), argument)
    return [
        Run(**{**row, "curve": tuple((int(a), float(b)) for a, b in row["curve"])}) for row in found
    ]
