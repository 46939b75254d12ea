"""``loko-ref compare report`` and the pages of the results: every number is the document's."""

import importlib
import json
import re
from pathlib import Path

import jsonschema
import pytest
from command import loko_ref

from loko_ref.errors import InputError
from loko_ref.experiments.compare import headline, lte_report, online, pictures
from loko_ref.experiments.compare.analysis import Table
from loko_ref.experiments.compare.learners import GRID, LOKO, SCALED
from loko_ref.experiments.compare.lte import SETTINGS, Run
from loko_ref.experiments.compare.streams import STREAMS
from loko_ref.experiments.compare.trials import Trial
from loko_ref.files import documents

SITE = Path(__file__).resolve().parents[2] / "derivations" / "site"
IRIS, WINE, REAL, LATER = (
    next(one for one in STREAMS if one.name == name)
    for name in ("iris invert", "wine permute", "diabetes noise", "digits noise")
)
ADAMW = next(one for one in GRID if one.family == "AdamW")
SOME = [LOKO[0], LOKO[1], SCALED[0], GRID[0], ADAMW]


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(SITE))
    return importlib.import_module("pages.comparison")


def planted(file, *, ended=True):
    """Write a document with known scores: LoKO .9, AdamW .8, others .7; on wine the reverse."""
    plan = online.Plan(streams=[IRIS, WINE, REAL, LATER], seeds=range(4), learners=SOME, limit=50)
    trials = []
    for stream in plan.streams:
        for seed in plan.seeds:
            for one in SOME:
                if stream is LATER and not ended and seed == 3:
                    continue
                score = {LOKO[0]: 0.9, ADAMW: 0.8}.get(one, 0.7) - 0.01 * seed
                if stream is WINE:
                    score = 1 - score
                if stream is REAL:
                    score = 100 * (1 - score)
                shape = (3, 2.5, 1.05, 1) if stream is REAL else (0.75, 0.95, 1, 1)
                curve = tuple(factor * score for factor in shape)
                trials.append(Trial(stream=stream.name, learner=one.name, seed=seed, online=score,
                                    final=score, curve=curve, diverged=None, ms=1.5))  # fmt: skip
    found = online.as_document(Table(trials, plan.streams, plan.seeds), plan)
    found["versions"]["loko_ref"] = "0.0.7"
    file.write_text(json.dumps(found), encoding="utf-8")
    return file


def test_a_document_is_condensed_to_the_streams_that_are_done(tmp_path):
    part, whole = (
        online.condensed(planted(tmp_path / f"{ended}.json", ended=ended))
        for ended in (False, True)
    )
    for found, names in ((part, [LATER.name]), (whole, [])):
        jsonschema.validate(found, documents.load("compare-online"))
        assert "trials" not in found
        assert found["versions"]["loko_ref"] == "0.0.7"  # that of the run
        assert headline.unfinished(found) == names
        assert found["complete"] is not bool(names)
    assert len(json.dumps(whole)) < 200_000 * 4 / len(STREAMS)
    assert [row["stream"] for row in part["summary"]["streams"]] == [
        IRIS.name, WINE.name, REAL.name
    ]  # fmt: skip
    curve = part["summary"]["curves"][IRIS.name]["LoKO, recommended"]
    assert curve["mean"] == pytest.approx([0.66, 0.836, 0.88, 0.88])
    assert curve["half"][0] == pytest.approx(12.706 * 0.0075, rel=1e-3)  # of two seeds


def test_the_sentences_count_what_is_planted(tmp_path):
    said = headline.online(online.condensed(planted(tmp_path / "d.json", ended=False)))
    assert said[0] == (
        "On 3 streams of shifted real data, of at most 50 samples (1 more are planned and not "
        "finished), LoKO at one setting (`recommended`) is ahead of the best of 2 first-order "
        "settings, chosen anew for each stream and metric, on 2 in online score, 2 in final "
        "score and 2 in both; 0 of its 12 runs diverged."
    )
    assert "4 are above 0 with their whole 95 % interval, 2 below" in said[2]
    assert "at most half of the steps on 1 of 3" in said[-1]
    missed = headline.behind(online.condensed(tmp_path / "d.json")["summary"])
    assert [(stream, metric) for stream, metric, _ in missed] == [
        (WINE.name, "online"), (WINE.name, "final")
    ]  # fmt: skip
    assert headline.online(None) == [headline.NOT_MADE.format("online")]


def test_the_page_has_the_misses_and_what_is_not_done(pages, tmp_path):
    found = online.condensed(planted(tmp_path / "d.json", ended=False))
    some = found["summary"] | {"curves": {}, "ranks": {"cases": 0, "mean": {}}, "p0": {}}
    words = "\n".join(pages.online(found | {"summary": some}, tmp_path / "compared"))
    assert "**Not finished in this document**" in words
    assert LATER.name in words
    assert "The seeds" not in words
    assert re.search(
        r"\| wine permute \| online \| sgd 0.001 \| -0.200 \[-0.200, -0.200\] \|", words
    )
    assert "--seeds 4 --limit 50 --quick --stream 'iris invert'" in words
    empty = "\n".join(pages.online(None, tmp_path / "none"))
    assert headline.NOT_MADE.format("online") in empty
    assert "loko-ref compare report full.json --json derivations/site/compared/online.json" in empty


@pytest.mark.larger
def test_the_page_draws_what_the_document_has(pages, tmp_path):
    found = online.condensed(planted(tmp_path / "d.json"))
    words = "\n".join(pages.online(found, tmp_path / "compared"))
    for name, picture in pictures.drawn(found["summary"]).items():
        assert (tmp_path / "compared" / f"{name}.svg").read_bytes() == picture
        assert f"(compared/{name}.svg)" in words
    assert {f.name for f in (tmp_path / "compared").iterdir()} == {
        "curves.svg", "ranks.svg", "p0.svg"
    }  # fmt: skip


def a_run(setting, task, factor, seed, accuracy):
    return Run(task=task, setting=setting, factor=factor, seed=seed, accuracy=accuracy,
               curve=((0, 0.1), (8, accuracy)), seconds=1.0, effective_rank=2.0,
               bytes_sent=8)  # fmt: skip


def test_the_claims_stand_one_by_one_with_what_each_task_shows(pages, tmp_path):
    plan = lte_report.plan(quick=False, seeds=4, steps=8, tasks=["digits, mlp", "digits, vit"])
    runs = [
        a_run(one.name, "digits, mlp", factor, seed, 0.5 + 0.01 * k + 0.001 * seed)
        for k, one in enumerate(SETTINGS)
        for factor in one.factors
        for seed in plan.seeds
    ]
    file = tmp_path / "lte.json"
    file.write_text(json.dumps(lte_report.as_document(runs, plan)))
    found = lte_report.condensed(file)
    jsonschema.validate(found, documents.load("compare-lte"))
    assert headline.unfinished(found) == ["digits, vit"]
    claims = found["summary"]["digits, mlp"]["claims"]
    words = "\n".join(pages.lte(found))
    for claim in claims:
        row = next(line for line in words.splitlines() if line.startswith(f"| {claim['claim']} |"))
        assert headline.VERDICTS[claim["verdict"]] in row
        assert f"{claim['difference']['mean']:+.3f} [" in row
    first, task, rest = headline.lte(found)
    assert first.startswith(f"Of {len(claims)} checks of LTE's claims on 1 task (8 steps, 4 seeds)")
    assert task.startswith("digits, mlp: ")
    assert rest == "Planned and not finished: digits, vit."


def with_curve(document, curve):
    first, *rest = document["trials"]
    return document | {"trials": [first | {"curve": curve}, *rest]}


def test_another_document_is_refused(tmp_path):
    file = planted(tmp_path / "d.json")
    document = json.loads(file.read_text())
    condensed = tmp_path / "c.json"
    condensed.write_text(json.dumps(online.condensed(file)))
    with pytest.raises(InputError, match="a summary alone"):
        online.condensed(condensed)
    with pytest.raises(InputError, match="schema"):
        lte_report.condensed(file)
    for place, changed in (
        (r"plan\.seeds", document | {"plan": document["plan"] | {"seeds": []}}),
        (r"plan\.seeds", document | {"plan": document["plan"] | {"seeds": [0, 0]}}),
        (r"plan\.learners", document | {"plan": document["plan"] | {"learners": []}}),
        (r"trials\[0\]\.curve: got 0 points", with_curve(document, [])),
        (r"trials\[1\]\.curve: got 4 points", with_curve(document, [0.5])),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=place):
            online.condensed(file)
    document["plan"]["learners"][0]["options"] = ["p0=3"]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"plan\.learners"):
        online.condensed(file)
    document["plan"]["learners"][0]["name"] = "unheard of"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"FILE .*name"):
        online.condensed(file)


@pytest.mark.larger
def test_the_command(tmp_path):
    file = planted(tmp_path / "d.json")
    words = ["compare", "report", file, "--json", tmp_path / "s.json", "--plot", tmp_path / "p"]
    done = loko_ref(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s.json").read_text())
    assert headline.online(found)[1] in done.stdout
    assert {f.name for f in (tmp_path / "p").iterdir()} == {"curves.svg", "ranks.svg", "p0.svg"}
    (tmp_path / "x.json").write_text('{"schema": "loko-ref/train/2"}')
    done = loko_ref("compare", "report", tmp_path / "x.json")
    assert done.returncode == 2
    assert "'loko-ref/train/2'" in done.stderr
    assert "compare online --json" in done.stderr
