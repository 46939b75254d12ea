"""``loko-ref compare``: a trial is a run of ``train``; choices stay on their half of the seeds."""

import dataclasses
import json
import math

import jsonschema
import numpy as np
import pytest
from command import loko_ref
from scipy import stats

from loko_ref.errors import InputError
from loko_ref.experiments import stream as training
from loko_ref.experiments.base_network import prepare
from loko_ref.experiments.compare import online, pictures, trials
from loko_ref.experiments.compare.analysis import Table, critical_difference, halves
from loko_ref.experiments.compare.learners import GRID, LOKO, SCALED, Learner, learners
from loko_ref.experiments.compare.streams import STREAMS, Stream
from loko_ref.experiments.compare.trials import Trial
from loko_ref.files import documents

BY_NAME = {one.name: one for one in STREAMS}
IRIS = BY_NAME["iris invert"]
TINY = {"epochs": 2, "hidden": (6,)}


def tiny(name):
    found = BY_NAME[name]
    return dataclasses.replace(found, about={**found.about, **TINY})


def a_trial(learner, stream, **about):
    config = learner.config(seed=0, limit=12, **stream.about, **about)
    task = prepare(config, dataset=stream.dataset(config))
    return trials.trial(learner, task, stream), task


@pytest.mark.parametrize("learner", [LOKO[0], LOKO[1], LOKO[-1], GRID[0], GRID[30]],
                         ids=lambda one: one.name)  # fmt: skip
@pytest.mark.parametrize("name", ["iris invert", "diabetes noise"])
def test_a_trial_is_the_run_of_train(learner, name):
    found, task = a_trial(learner, tiny(name))
    progress = training.begin(task)
    while not training.finished(progress, task):
        progress = training.advance(progress, task)
    last = progress.curve[-1]
    assert (found.online, found.final) == pytest.approx((last.online, last.test), rel=1e-12)
    assert found.diverged is None
    assert len(found.curve) == 12


def test_rates_apart_move_each_factor_by_its_own():
    """With one step of SGD, B moves `ratio` times as far as without, and A the same."""
    plain = Learner(name="sgd", family="SGD", method="sgd", options={"lr": 0.1})
    apart = dataclasses.replace(plain, ratio=3.0)
    config = plain.config(seed=0, limit=12, **tiny("iris invert").about)
    task = prepare(config, dataset=IRIS.dataset(config))
    batch = training.stream_batch(task, 0)
    start = np.concatenate([task.model.weights[k].ravel() for k in task.model.trainable])
    moves = [one.begin(task)(batch, 0)[1] - start for one in (plain, apart)]
    is_B = np.concatenate(
        [np.full(task.model.weights[k].size, k.endswith(".B")) for k in task.model.trainable]
    )
    assert np.abs(moves[0][is_B]).max() > 0
    np.testing.assert_allclose(moves[1][is_B], 3 * moves[0][is_B], rtol=1e-12)
    np.testing.assert_array_equal(moves[1][~is_B], moves[0][~is_B])


def test_an_error_whose_square_overflows_is_one_without_bound(monkeypatch):
    """Outputs are finite, so nothing has diverged; JSON has no infinity."""
    usual = Learner.begin

    def begin(self, task):
        step = usual(self, task)

        def far(batch, k):
            z, theta = step(batch, k)
            return z + 1e200, theta

        return far

    monkeypatch.setattr(Learner, "begin", begin)
    monkeypatch.setattr(trials, "evaluate", lambda task, theta, step: math.inf)
    found, _ = a_trial(GRID[0], tiny("diabetes noise"))
    assert found.diverged is found.online is found.final is None
    assert set(found.curve) == {None}


@pytest.mark.parametrize("name", ["iris invert", "diabetes noise"])
def test_what_diverges_counts_as_wrong(name):
    wild = Learner(name="wild", family="SGD", method="sgd", options={"lr": 1e30})
    found, _ = a_trial(wild, tiny(name))
    assert found.diverged is not None
    if name == "iris invert":
        assert found.final == 0
        assert found.curve[-1] == 0
    else:
        assert found.online is found.final is found.curve[-1] is None


def test_a_drift_changes_the_stream_where_it_says_and_the_test_part():
    for name in ("digits, then invert", "digits, slowly invert"):
        one = BY_NAME[name]
        config = LOKO[1].config(seed=3, limit=200, **one.about)
        found = one.dataset(config)
        first, later = (
            Stream(name="s", about={**one.about, "shift": shift}).dataset(
                dataclasses.replace(config, shift=shift)
            )
            for shift in ("rotate90", "invert")
        )
        moved = (found.stream.x == later.stream.x).all(axis=1)
        kept = (found.stream.x == first.stream.x).all(axis=1)
        assert (moved ^ kept).all()
        np.testing.assert_array_equal(found.test.x, later.test.x)
        if one.drift == "abrupt":
            assert list(np.flatnonzero(moved)) == list(range(100, 200))
        else:
            assert not moved[:50].any()
            assert moved[150:].all()
            assert 30 < moved[50:150].sum() < 70
    new = BY_NAME["digits, new classes"]
    found = new.dataset(LOKO[1].config(seed=0, limit=200, **new.about))
    assert set(found.base.y) == set(range(6))
    assert set(found.stream.y) == set(range(10))


def planted(scores, streams, seeds, final=None):
    """Trials with given online scores by (stream, learner), one for each seed."""
    return [
        Trial(stream=stream.name, learner=learner, seed=seed, online=value, final=value,
              curve=(0.1, 0.5, 0.7, value), diverged=None, ms=1.0)
        for (stream, learner), values in scores.items()
        for seed, value in zip(seeds, values, strict=True)
    ]  # fmt: skip


def test_choices_are_made_on_one_half_and_reported_on_the_other():
    """The rival that is best on the reporting seeds alone is not chosen."""
    a, b = [one for one in GRID if one.family == "AdamW"][:2]
    scores = {
        (IRIS, LOKO[0].name): [0.5, 0.80, 0.5, 0.85, 0.5, 0.9],
        (IRIS, a.name): [0.9, 0.10, 0.9, 0.15, 0.9, 0.3],
        (IRIS, b.name): [0.2, 0.99, 0.2, 0.99, 0.2, 0.99],
    }
    table = Table(planted(scores, [IRIS], range(6)), [IRIS], range(6))
    assert halves(range(6)) == ((0, 2, 4), (1, 3, 5))
    assert table.best(IRIS, "online", [a, b]) == a.name
    found = table.difference(IRIS, "online", LOKO[0].name, a.name)
    first, second = np.array([0.8, 0.85, 0.9]), np.array([0.1, 0.15, 0.3])
    interval = stats.ttest_rel(first, second).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx(
        ((first - second).mean(), interval.low, interval.high)
    )
    rivals = table.rivals([a, b])
    assert table.wins(LOKO[0].name, rivals)["both"] == ["iris invert"]
    # reached at .7, the third of four points, in two seeds; at the second in the first
    assert table.reached(IRIS, LOKO[0].name, a.name) == 0.5
    drift = dataclasses.replace(IRIS, then="permute")  # counted from the middle
    assert table.reached(drift, LOKO[0].name, a.name) == 0.5
    assert table.reached(IRIS, LOKO[0].name, b.name) == math.inf


def test_errors_are_better_when_smaller_and_a_divergence_is_the_worst():
    real = BY_NAME["diabetes noise"]
    (a,) = [one for one in GRID if one.family == "AdamW"][:1]
    scores = {(real, LOKO[0].name): [60.0, 61.0], (real, a.name): [65.0, 64.0]}
    table = Table(planted(scores, [real], range(2)), [real], range(2))
    found = table.difference(real, "online", LOKO[0].name, a.name)
    assert found.mean == 3
    assert math.isinf(found.high)  # one seed says nothing of the spread
    scores[real, a.name] = [65.0, None]
    table = Table(planted(scores, [real], range(2)), [real], range(2))
    assert table.difference(real, "online", LOKO[0].name, a.name).mean == math.inf


def test_ranks_and_their_critical_difference():
    every = {one.name for one in (*LOKO, *GRID)}
    order = {name: k for k, name in enumerate(sorted(every))}
    scores = {(IRIS, name): [1 - k / 100] * 2 for name, k in order.items()}
    mean, cases = Table(planted(scores, [IRIS], range(2)), [IRIS], range(2)).ranked()
    assert cases == 2
    assert sorted(mean.values()) == list(range(1, len(mean) + 1))
    best = {f: min(order[one.name] for one in GRID if one.family == f)
            for f in mean.keys() - {one.name for one in LOKO}}  # fmt: skip
    place = {name: best.get(name, order.get(name)) for name in mean}
    assert sorted(mean, key=mean.get) == sorted(place, key=place.get)
    # Demšar (2006), table 5: q of five classifiers at 5 % is 2.728
    assert critical_difference(5, 30) == pytest.approx(2.728 * math.sqrt(5 * 6 / 180), rel=1e-3)


def tiny_plan():
    some = [LOKO[0], *GRID[:1], *GRID[20:22]]
    return online.Plan(streams=[tiny("iris invert")], seeds=range(2), learners=some, limit=8)


def without_time(table):
    return {key: dataclasses.replace(one, ms=0.0) for key, one in table.trials.items()}


def test_an_interrupted_comparison_goes_on_to_the_same_result(tmp_path):
    plan, kept = tiny_plan(), []
    whole = online.compare(plan, workers=1, ended=lambda found, done, total: kept.append(found))
    assert len(kept) == 2
    half = Table(kept[0], plan.streams, plan.seeds)
    path = tmp_path / "half.json"
    path.write_text(json.dumps(online.as_document(half, plan)))
    assert json.loads(path.read_text())["complete"] is False
    again = online.compare(plan, workers=1, before=online.read(path, plan))
    assert without_time(again) == without_time(whole)  # to the last digit: curves are compared
    document = json.loads(json.dumps(online.as_document(again, plan)))
    jsonschema.validate(document, documents.load("compare-online"))
    assert document["complete"]
    assert document["summary"]["ahead"]["recommended"].keys() == {"first-order", "AdamW"}
    changed = document["trials"][0]["online"] = "x"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"trials\[0\]\.online"):
        online.read(path, plan)
    del changed
    with pytest.raises(InputError, match=r"plan\.limit"):
        online.read(path, dataclasses.replace(plan, limit=9))
    for picture in pictures.drawn(document["summary"]).values():
        assert picture.startswith(b"<?xml")
    ranks = document["summary"]["ranks"]
    drawn = pictures.ranks({"recommended": 1.5, "AdamW": 1.6, "SGD": 3.0}, 4).decode()
    assert "recommended" in drawn
    assert ranks["cases"] in (0, 2)


def test_the_dense_filter_runs_on_tables_alone():
    plan = online.plan()
    empty = Table([], plan.streams, plan.seeds)
    dense = [s.name for s in plan.streams if any(w.dense for w in plan.wanted(s, 0, empty))]
    assert len(dense) == 9
    assert not any("digits" in name or "topics" in name for name in dense)


def test_a_learner_that_did_not_run_on_a_stream_is_ahead_on_none():
    plan = online.Plan(streams=[IRIS], seeds=range(4), learners=learners(quick=False))
    scores = {(IRIS, one.name): [0.5] * 4 for one in plan.learners if not one.dense}
    table = Table(planted(scores, [IRIS], range(4)), plan.streams, plan.seeds)
    found = online.summary(table, plan)
    assert found["ahead"]["dense"]["first-order"] == {"online": [], "final": [], "both": []}
    assert "dense" not in found["ranks"]["mean"]


def test_on_a_transformer_the_grid_is_chosen_on_two_seeds():
    stream = dataclasses.replace(IRIS, about={"data": "topics"})
    assert stream.transformer
    plan = online.Plan(streams=[stream], seeds=range(10), learners=learners(quick=False))
    empty = Table([], plan.streams, plan.seeds)
    assert plan.wanted(stream, 1, empty) is None
    first = plan.wanted(stream, 2, empty)
    assert len(first) == len(plan.learners) - 1  # all but the dense filter
    scores = {(stream, one.name): [k / 100] * 2 for k, one in enumerate(first)}
    table = Table(planted(scores, [stream], (0, 2)), plan.streams, plan.seeds)
    later = plan.wanted(stream, 1, table)
    assert {one.name for one in later} >= {one.name for one in (*LOKO[:-1], *SCALED)}
    assert len([one for one in later if one.method != "loko"]) == 5  # the best of each family
    # who ran with the two alone, ahead there of the chosen ones' mean, has nothing to report
    scores = {(stream, one.name): [0.01] * 8 for one in later}
    table.trials |= {t.key: t for t in planted(scores, [stream], (1, 3, 4, 5, 6, 7, 8, 9))}
    grid = [one for one in plan.learners if one.method != "loko"]
    rival = table.best(stream, "final", grid)
    assert rival in {one.name for one in later}
    assert table.difference(stream, "final", LOKO[0].name, rival).mean == 0
    assert table.wins(LOKO[0].name, table.rivals(grid)) == {"online": [], "final": [], "both": []}


@pytest.mark.larger
def test_the_command_on_two_cores_and_what_it_refuses(tmp_path):
    out, pages = tmp_path / "c.json", tmp_path / "pages"
    words = ["compare", "online", "--quick", "--stream", "iris invert", "--seeds", "2"]
    words += ["--limit", "10", "--workers", "2", "--json", out]
    done = loko_ref(*words, "--plot", pages)
    assert done.returncode == 0, done.stderr
    assert "recommended" in done.stdout
    assert {path.name for path in pages.iterdir()} == {"curves.svg", "ranks.svg"}
    jsonschema.validate(json.loads(out.read_text()), documents.load("compare-online"))
    done = loko_ref(*words, "--resume", out)  # nothing is left to do
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--stream", "iris inverted"], "misspelt name; the closest is 'iris invert'"),
        (["--seeds", "0"], "--seeds: got 0"),
        (["--workers", "0", "--stream", "iris invert", "--seeds", "1"], "--workers: got 0"),
        (["--resume", "no.json"], "no.json"),
    ],
)
@pytest.mark.larger
def test_the_command_refuses(words, text):
    done = loko_ref("compare", "online", "--quick", *words)
    assert done.returncode == 2
    assert text in done.stderr
