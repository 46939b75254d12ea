"""The results of both comparisons, from the documents in ``compared``: no number is typed."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loko_ref.experiments.compare import headline, pictures
from loko_ref.experiments.compare.learners import learners
from loko_ref.experiments.compare.lte import TASKS
from loko_ref.experiments.compare.streams import STREAMS
from pages.markdown import block, code, page, table, text

RESULTS = Path(__file__).resolve().parents[1] / "compared"

Document = Mapping[str, Any]

PICTURES = {
    "curves": (
        "Along the streams",
        "The score on the test part along each stream; the shaded area is the 95 % interval of "
        "the mean.",
    ),
    "ranks": (
        "Mean ranks",
        "Mean ranks over all streams and both metrics, first-order families at their best "
        "setting. A bar joins learners whose ranks differ by less than the critical difference "
        "of Nemenyi's test at 5 %.",
    ),
    "p0": (
        "Sensitivity to the prior variance",
        "The final score with every p0 of the default times a factor, over three decades, mean "
        "over all seeds.",
    ),
}
"""Name of a picture -> heading and description."""


def read(name: str, folder: Path = RESULTS) -> Document | None:
    """Return a document that is kept with this version, or nothing."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _number(value: float | None, regression: bool) -> str:
    return "none" if value is None else f"{value:.1f}" if regression else f"{value:.3f}"


def _difference(found: Mapping[str, float | None] | None, regression: bool = False) -> str:
    if found is None or found["mean"] is None:
        return "none"
    form = "+.1f" if regression else "+.3f"
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    if low is None or high is None:
        return f"{mean:{form}} (no interval)"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _numbers(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells keep to one line, and which scrolls."""
    return f"```{{container}} numbers\n{table(head, rows)}```\n"


def _sentences(found: Sequence[str]) -> str:
    return "\n".join(f"- {one}" for one in found) + "\n"


def _options(name: str, plan: Document) -> str:
    """Return the options that a plan was made by."""
    words = [f"--seeds {len(plan['seeds'])}"]
    words += [f"--{key} {plan[key]}" for key in ("limit", "steps") if plan.get(key) is not None]
    if name == "online":
        words += ["--quick"] * (len(plan["learners"]) < len(learners(quick=False)))
        known, one, named = [stream.name for stream in STREAMS], "stream", plan["streams"]
    else:
        known, one, named = list(TASKS), "task", plan["tasks"]
    words += [f"--{one} {shlex.quote(key)}" for key in named if named != known]
    return " ".join(words)


def _repeat(name: str, document: Document | None) -> str:
    """Return how the page's document is made anew."""
    options = "" if document is None else f" {_options(name, document['plan'])}"
    lines = [
        f"loko-ref compare {name}{options} --json full.json",
        f"loko-ref compare {name}{options} --json full.json --resume full.json  # after a stop",
        f"loko-ref compare report full.json --json derivations/site/compared/{name}.json",
    ]
    words = """The first command runs everything (extra `[data]`; both cores, for hours; `--quick`
takes minutes), the last one writes what this page is made of. Both documents name every learner or
setting that was compared."""
    made = ""
    if document is not None:
        versions = ", ".join(f"{key} {value}" for key, value in document["versions"].items())
        made = f" This page's document was made with {text(versions)}."
    return f"{words}{made}\n\n{block(chr(10).join(lines), 'sh')}"


def _left(document: Document, what: str) -> list[str]:
    left = headline.unfinished(document)
    if not left:
        return []
    names = ", ".join(map(text, left))
    return [f"**Not finished in this document**, and in no number below: the {what} {names}.\n"]


def _streams(summary: Document) -> list[str]:
    parts = []
    for metric, words in (
        ("online", "Before each sample is learned"),
        ("final", "On the test part, at the end"),
    ):
        rows = []
        for row in summary["streams"]:
            one, real = row[metric], row["regression"]
            steps = row["steps_to_adamw"]
            rows.append((
                text(row["stream"]) + (" (RMSE)" if real else ""),
                _number(one["default"], real),
                _number(one["rival_score"], real),
                text(one["rival"] or "none"),
                _difference(one["difference"], real),
                *(() if metric == "online" else ("never" if steps is None else f"{steps:.2f}",)),
            ))  # fmt: skip
        head = ("stream", "LoKO", "best rival", "which", "difference \\[95 %\\]")
        head += () if metric == "online" else ("share of the steps to AdamW's score",)
        parts += [f"### {words}\n", _numbers(head, rows)]
    return parts


def _behind(summary: Document) -> list[str]:
    missed = headline.behind(summary)
    if not missed:
        return ["On no stream, in neither metric.\n"]
    real = {row["stream"]: row["regression"] for row in summary["streams"]}
    rows = [
        (text(stream), metric, text(one["rival"] or "none"),
         _difference(one["difference"], real[stream]))
        for stream, metric, one in missed
    ]  # fmt: skip
    return [_numbers(("stream", "score", "rival", "difference \\[95 %\\]"), rows)]


VARIANTS = """On how many streams each is ahead of the best first-order setting, and of the best
AdamW; its mean rank, the median of its processor time for a step, and how many of its runs
diverged. The dense filter runs on tables alone: elsewhere it counts as behind, without a rank.\n"""


def _variants(document: Document) -> str:
    summary, total = document["summary"], len(document["summary"]["streams"])
    options = {one["name"]: one["options"] for one in document["plan"]["learners"]}
    mean = summary["ranks"]["mean"]
    rows = []
    for name, pools in summary["ahead"].items():
        counts = [f"{len(pools[pool][key])}/{total}" for pool in ("first-order", "AdamW")
                  for key in ("online", "final", "both")]  # fmt: skip
        ms = summary["ms"].get(name)
        rows.append((
            text(name), *counts,
            f"{mean[name]:.2f}" if name in mean else "none",
            "none" if ms is None else f"{ms:.2f}",
            str(len(summary["diverged"].get(name, ()))),
        ))  # fmt: skip
    rest = [(f"{text(name)}, best of its grid", *[""] * 6, f"{rank:.2f}", "", "")
            for name, rank in mean.items() if name not in summary["ahead"]]  # fmt: skip
    three = ("online", "final", "both")
    head = ("learner", *three, *(f"{k}, AdamW" for k in three), "mean rank", "ms", "diverged")
    listed = "\n".join(f"- {text(name)}: {code(', '.join(options[name])) or 'its defaults'}"
                       for name in summary["ahead"])  # fmt: skip
    return f"{_numbers(head, rows + rest)}\nThe options of each:\n\n{listed}\n"


def _grid(document: Document) -> str:
    families: dict[str, list[str]] = {}
    for one in document["plan"]["learners"]:
        if one["method"] != "loko":
            families.setdefault(one["family"], []).append(one["name"])
    rows = [(text(name), str(len(some)), text("; ".join(some))) for name, some in families.items()]
    return table(("family", "settings", "which"), rows)


def online(document: Document | None, folder: Path) -> list[str]:
    """Return the parts of the page; its pictures are written into a folder beside it."""
    repeat = ["## Repeat it\n", _repeat("online", document)]
    if document is None:
        return [_sentences(headline.online(None)), *repeat]
    plan, summary = document["plan"], document["summary"]
    seeds = summary["seeds"]
    choosing, reporting = (", ".join(map(str, seeds[k])) for k in ("choosing", "reporting"))
    limit = "" if plan["limit"] is None else f", of at most {plan['limit']} samples a part"
    about = f"""A network is trained on real data and gets LoRA on every linear; then it sees a
stream of data that differs (turned, inverted, permuted, noisy, with wrong labels or new classes,
or drifting on the way), once, one sample at a time{limit}. The *online* score counts each sample
before it is learned, the *final* score is on a test part at the end of the stream: accuracy, or
the root mean squared error of a regression. Every variant of LoKO has one setting for all
streams. Of each first-order family the best setting of a grid is chosen for each stream and
metric, with the seeds {choosing}; all numbers are from the seeds {reporting}, which chose
nothing. On transformers the grid is chosen with two of the selection seeds. A run that diverges
counts as wrong from there on. Differences are paired by seed, above 0 where LoKO is ahead, with
the 95 % interval of Student's t.\n"""
    parts = [_sentences(headline.online(document)), *_left(document, "streams")]
    parts += ["## What is compared\n", about]
    if summary["streams"]:
        parts += ["## Stream by stream\n", "`recommended`, the default of `loko-ref train`, beside "
                  "the best of all first-order settings.\n", *_streams(summary)]  # fmt: skip
        parts += ["## Where it is not ahead\n", *_behind(summary)]
        parts += ["## All variants\n", VARIANTS, _variants(document)]
        lost = [f"- {text(name)}: {text('; '.join(runs))}"
                for name, runs in summary["diverged"].items()]  # fmt: skip
        parts += ["### Divergences\n", "\n".join(lost or ["No run of LoKO diverged."]) + "\n"]
        for name, picture in pictures.drawn(summary).items():
            heading, words = PICTURES[name]
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.svg").write_bytes(picture)
            parts += [
                f"## {heading}\n",
                f"{words}\n",
                f"```{{container}} picture\n![{words}]({folder.name}/{name}.svg)\n```\n",
            ]
    parts += ["## The grid\n", _grid(document), *repeat]
    return parts


NOT_TESTABLE = """Not testable at this size: that LTE reaches the accuracy of full training on
ImageNet with vision transformers, that it saves time over slow links between many machines, and
that it trains models which do not fit one device."""


def lte(document: Document | None) -> list[str]:
    """Return the parts of the page."""
    repeat = ["## Repeat it\n", _repeat("lte", document)]
    if document is None:
        return [_sentences(headline.lte(None)), *repeat]
    plan, summary = document["plan"], document["summary"]
    limit = "" if plan["limit"] is None else f" with at most {plan['limit']} samples of each part"
    about = f"""Networks are trained from scratch for {plan["steps"]} steps{limit}: full
training, one LoRA, and LTE, one choice at a time departing from the same base. All see equal
samples; *timed* is the accuracy that a setting had reached when full training ended, all heads in
one process. The learning rate of every setting, full training included, is the best of a grid,
chosen on half of the {len(plan["seeds"])} seeds; the other half reports. A claim is *confirmed*
where the 95 % interval of the paired difference is above 0 (for "as good as": above minus one
percentage point), *refuted here* where it is below, and *not decided* otherwise.\n"""
    parts = [_sentences(headline.lte(document)), *_left(document, "tasks")]
    parts += ["## What is compared\n", about]
    if summary:
        claims = zip(*(found["claims"] for found in summary.values()), strict=True)
        rows = [
            (text(same[0]["claim"]), f"{text(same[0]['first'])} − {text(same[0]['second'])}",
             *(f"**{headline.VERDICTS[one['verdict']]}** {_difference(one['difference'])}"
               for one in same))
            for same in claims
        ]  # fmt: skip
        head = ("claim", "difference of", *(f"{text(task)} \\[95 %\\]" for task in summary))
        parts += ["## The claims, one by one\n", table(head, rows)]
        parts.append(f"{NOT_TESTABLE}\n")
    for task, found in summary.items():
        rows = [
            (text(row["setting"]), f"{row['rate']:g}", f"{row['accuracy']:.3f}",
             f"{row['timed']:.3f}", _difference(row["to_full"]), _difference(row["to_lora"]),
             f"{row['effective_rank']:.1f}", f"{row['seconds']:.1f}",
             f"{row['bytes_sent'] / 1e6:.1f}")
            for row in found["rows"]
        ]  # fmt: skip
        head = ("setting", "rate x", "accuracy", "timed", "minus full \\[95 %\\]",
                "minus LoRA \\[95 %\\]", "effective rank of W − W0", "s", "MB sent")  # fmt: skip
        parts += [f"## {text(task)}\n", _numbers(head, rows)]
    return [*parts, *repeat]


def write(source: Path, results: Path = RESULTS) -> None:
    """Write both pages, and their pictures."""
    page(
        source / "compared_online.md",
        "LoKO compared online",
        *online(read("online", results), source / "compared"),
    )
    page(source / "compared_lte.md", "LTE compared", *lte(read("lte", results)))
