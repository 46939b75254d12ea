"""The page of a walk: small, without a request, by keyboard, and its numbers those of the steps."""

import json
import re
import subprocess
import sys
from pathlib import Path

import browser
import numpy as np
import pytest

from loko_ref.cli import main
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.explain.heads import RANK, HeadsRun, explain_lte
from loko_ref.explain.recorded import explain_recording
from loko_ref.explain.sources import (
    FILTERS,
    OPERATIONS,
    SOLVES,
    from_case,
    from_config,
    tiny,
    tiny_classes,
)
from loko_ref.explain.steps import explain
from loko_ref.explain.walk import of_lte, of_recording, of_source, of_tiny, pages
from loko_ref.explain.walk.cells import cells, largest, read
from loko_ref.files.pages.prose import html, mathml

MOST = 1_000_000


@pytest.fixture(scope="module")
def tiny_page(tmp_path_factory):
    file = tmp_path_factory.mktemp("walk") / "tiny.html"
    file.write_text(of_tiny(4), encoding="utf-8")
    return file


def document(text):
    return json.loads(
        re.search(r'<script id="data" type="application/json">(.*?)</script>', text)[1]
    )


def test_the_page_holds_the_numbers_of_the_steps(tiny_page):
    data = document(tiny_page.read_text(encoding="utf-8"))
    assert [one["name"] for one in data["walks"]] == [*FILTERS, *SOLVES]
    sources = [tiny(4, **options) for options in FILTERS.values()]
    sources += [tiny_classes(4, solve) for solve in SOLVES.values()]
    for walk, source in zip(data["walks"], sources, strict=True):
        steps = list(explain(source, steps=4))
        for carried, step in zip(walk["steps"], steps, strict=True):
            for q in step.quantities:
                drawn = data["pool"][carried["values"][q.key]]["v"]
                assert drawn == (q.value.T if q.axes == "nm" else q.value).ravel().tolist()
            p = step.quantities[-1].value
            assert carried["cov"] == (p if p.ndim == 2 else np.diag(p)).tolist()
    first = data["walks"][-1]["world"]["fixed"][0]
    z, y, G, v = (np.array(first[name]) for name in ("z", "y", "G", "v"))
    softmax = np.exp(z + G @ v) / np.exp(z + G @ v).sum()
    np.testing.assert_allclose(v, y - softmax, atol=1e-12)


def test_every_belief_shrinks_and_those_with_a_correlation_lean_along_the_right_answers():
    areas, leaning = {}, {}
    for name, options in FILTERS.items():
        covs = [np.array(s.quantities[-1].value) for s in explain(tiny(6, **options), steps=6)]
        full = [p if p.ndim == 2 else np.diag(p) for p in covs]
        areas[name] = [np.linalg.det(P) for P in full]
        leaning[name] = full[-1][0, 1]
        assert all(b < a for a, b in zip([1, *areas[name]], areas[name], strict=False))
    assert areas["variational"][-1] < areas["decoupled"][-1]
    assert leaning["decoupled"] == leaning["variational"] == 0
    assert max(leaning["dense"], leaning["low rank"]) < 0


def test_a_precision_is_shown_by_its_inverse():
    """One column more than is learned cuts nothing: low rank is then the dense filter."""
    kept, dense = (
        [q.value for q in step.quantities if q.key in ("theta_post", "p_post", "p_pred")]
        for options in (
            {"covariance": "lowrank", "columns": 2, "lam": 0.9, "q": 0.01},
            {"covariance": "dense", "lam": 0.9, "q": 0.01},
        )
        for step in [list(explain(tiny(3, **options), steps=2))[1]]
    )
    for got, right in zip(kept, dense, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-9)
    options = {"covariance": "lowrank", "p0": 0.05}
    large = RunConfig(optimizer="loko", options=options, data="breast_cancer", epochs=1)
    with pytest.raises(InputError, match="at most 512"):
        next(explain(large, steps=1))


@pytest.mark.parametrize("shape", [(3,), (300,), (2000,), (10, 700), (70, 9), (2, 70, 3), (1, 65)])
def test_cells_hold_mean_and_extremes(shape, rng):
    value = rng.standard_normal(shape)
    packed = cells(value)
    assert packed["r"] <= 64
    assert packed["c"] <= 64
    mean, least, most = read(packed)
    step = (value.max() - value.min()) / 8280
    assert least.min() <= value.min() + step
    assert most.max() >= value.max() - step
    assert (least <= mean + step).all()
    assert (mean <= most + step).all()
    assert mean.size * np.prod(packed["b"]) >= value.size
    flat = value.reshape(len(value), -1) if value.ndim > 1 else value[None]
    tall, wide = packed["b"]
    assert mean[0] == pytest.approx(flat[:tall, :wide].mean(), abs=step)
    index = largest(value)[0]
    assert value[tuple(index[:-1])] == index[-1] == value.flat[np.abs(value).argmax()]


def test_formulas_are_mathml_and_labels_buttons():
    assert "<mfrac" in mathml(r"\tfrac12 + \dots \lt 1")
    text = html(r"**Statement.** $p \lt 1$ by [KAL-2](kalman.md), not `$x` of KAL-9.", ["KAL-2"])
    assert "<strong>Statement.</strong>" in text
    assert '<button class="label" data-label="KAL-2">KAL-2</button>' in text
    assert "<math" in text
    assert "<code>$x</code> of KAL-9" in text


@pytest.mark.larger
def test_every_formula_of_the_derivations_becomes_mathml():
    from loko_ref.files.derivations import derivations

    for one in derivations().values():
        assert "$" not in re.sub(r"<code>.*?</code>", "", html(one.text)), one.label


def keys(tab, *names):
    for name in names:
        tab.keyboard.press(name)


def test_the_page_opens_without_a_fault(chromium, tiny_page):
    with browser.opened(chromium, tiny_page, width=400, dark=True) as page:
        page.tab.focus("#step")
        keys(page.tab, "ArrowRight")
        assert page.tab.inner_text("#said").startswith("Step 1:")
        assert page.violations() == page.faults == []
        assert not page.overflows()


@pytest.mark.larger
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_gone_through_by_keyboard(chromium, tiny_page, width):
    with browser.opened(chromium, tiny_page, width=width, dark=width == 400) as page:
        tab = page.tab
        tab.focus("#step")
        keys(tab, "ArrowRight", "ArrowRight")
        assert tab.inner_text("#said").startswith("Step 2:")
        keys(tab, "End")
        assert tab.inner_text("#said").startswith("Step 3:")
        assert tab.is_disabled("#on")
        names = [one.inner_text() for one in tab.query_selector_all("[role=tab]")]
        assert names[:3] == ["Two parameters", "The implicit step", "Network"]
        tab.focus("#tab-0")
        texts = set()
        for name in names:
            assert tab.inner_text("[role=tab][aria-selected=true]") == name
            assert tab.evaluate("document.activeElement.textContent") == name
            assert not page.overflows(), name
            assert page.violations() == [], name
            assert "[object" not in tab.inner_text("#panel")
            texts.add(tab.inner_text("#panel"))
            keys(tab, "ArrowRight")
        assert len(texts) == len(names)
        assert tab.inner_text("[role=tab][aria-selected=true]") == names[0]  # round
        keys(tab, "End", "Home")
        tab.focus("#filter-0")
        keys(tab, "ArrowDown")
        tab.focus("#flow button")
        keys(tab, "Enter")
        assert tab.inner_text("#side h2").startswith("theta")
        tab.focus("#side .label[data-open]")
        keys(tab, "Enter")
        assert tab.locator("#side .derivation math").count() > 3
        assert page.violations() == []
        keys(tab, "Escape")
        assert tab.is_visible("#side") is (width > 1000)
        assert page.faults == []


@pytest.mark.larger
def test_twenty_steps_of_digits(chromium, tmp_path):
    source = from_config(RunConfig(optimizer="loko", data="digits"))
    text, _ = of_source(source, "digits", steps=20, skip=None)
    assert len(text.encode()) < MOST
    (tmp_path / "walk.html").write_text(text, encoding="utf-8")
    with browser.opened(chromium, tmp_path / "walk.html", width=400) as page:
        page.tab.focus("#tab-0")
        for _ in range(5):
            assert "[object" not in page.tab.inner_text("#panel")
            assert page.violations() == []
            assert not page.overflows()
            keys(page.tab, "ArrowRight")
        page.tab.click("#tab-1")
        page.tab.focus("[data-card=H] .map")
        before = page.tab.inner_text("#cell")
        keys(page.tab, "ArrowRight", "ArrowDown")
        assert "class 1 × 0.A" in page.tab.inner_text("#cell") != before
        for card in ("K", "theta"):  # what scrolls below a pointer at rest is not chosen
            page.tab.locator(f"[data-card={card}] .map").scroll_into_view_if_needed()
            page.tab.wait_for_timeout(200)
            assert "class 1 × 0.A" in page.tab.inner_text("#cell")
        page.tab.hover("[data-card=theta] .map")
        assert "class 1 × 0.A" not in page.tab.inner_text("#cell")
        assert page.faults == []


def test_lte_is_explained_event_by_event():
    found = list(explain_lte(HeadsRun(data="iris", steps=7)))
    assert [m.kind for m in found] == [*(["step"] * 6), "merge", "reset", "step"]
    for name in found[0].sites:
        views = [m.sites[name] for m in found]
        for before, view, reset in zip(views[5::8], views[6::8], views[7::8], strict=True):
            assert (view.pending == 0).all()  # a head sees the merged weight
            assert (before.pending > 0).all()
            assert (view.update != before.update).any()
            assert (reset.update == view.update).all()
            assert (reset.B == 0).all()
            assert (reset.A != view.A).any()
            # each merge adds a rank of N r at most
            assert view.rank - before.rank <= HeadsRun.heads * RANK
            np.testing.assert_allclose(np.linalg.svd(view.update)[1], view.singular, atol=1e-12)
        overlap = views[0].overlap
        np.testing.assert_allclose(np.diagonal(overlap), 1)
        assert (overlap < 1 + 1e-12).all()
    with pytest.raises(InputError, match="regression"):
        next(explain_lte(HeadsRun(data="diabetes")))


def test_the_walk_of_lte_takes_its_choices_and_a_page_keeps_below_its_size():
    run = HeadsRun(data="iris", steps=5, heads=3, rank=1, merge_every=2, reset="none")
    moments = list(explain_lte(run))
    assert [one.kind for one in moments] == [
        "step",
        "step",
        "merge",
        "step",
        "step",
        "merge",
        "step",
    ]
    assert {view.A.shape[:2] for one in moments for view in one.sites.values()} == {(3, 1)}
    carried = document(of_lte(run))
    assert list(carried["kinds"]) == ["step", "merge"]  # no button leads to what does not occur
    assert (carried["heads"], carried["rank"]) == (3, 1)
    assert "After every 2 steps they are merged into the weight W." in carried["about"]
    with pytest.raises(InputError, match="at most 3, the smaller side"):
        next(explain_lte(HeadsRun(data="iris", rank=4)))
    for name, value in (("heads", 65), ("rank", 0), ("merge_every", 0), ("reset", "A")):
        with pytest.raises(InputError, match=name):
            HeadsRun(**{name: value})


@pytest.mark.parametrize(
    ("page", "most"),
    [
        (lambda k: of_source(tiny(k), "tiny", steps=k)[0], 165_000),
        pytest.param(of_tiny, 400_000, marks=pytest.mark.larger),
    ],
    ids=["source", "tiny"],
)
def test_a_walk_that_a_page_cannot_hold_is_refused_by_the_steps_that_it_can(
    page, most, monkeypatch
):
    monkeypatch.setattr(pages, "MOST", most)
    monkeypatch.setattr(pages, "SPARE", 1_000)
    with pytest.raises(InputError, match=r"steps: got 9; required at most \d: as many") as refused:
        page(9)
    fits = int(re.search(r"at most (\d)", str(refused.value))[1])
    assert 0.85 * most < len(page(fits).encode()) < most


def test_where_no_steps_are_asked_for_those_that_fit_are_shown(monkeypatch):
    monkeypatch.setattr(pages, "MOST", 165_000)
    monkeypatch.setattr(pages, "SPARE", 1_000)
    text, held = of_source(tiny(9), "tiny")
    assert held == len(document(text)["walks"][0]["steps"])
    assert 1 < held < 9
    assert len(text.encode()) < 165_000


@pytest.mark.larger
def test_a_walk_of_lte_that_a_page_cannot_hold_is_refused_by_the_steps_that_it_can():
    with pytest.raises(InputError, match=r"steps: got 100; required at most") as refused:
        of_lte(HeadsRun(heads=64, steps=100))
    fits = int(re.search(r"at most (\d+)", str(refused.value))[1])
    text = of_lte(HeadsRun(heads=64, steps=fits))
    assert 0.9 * MOST < len(text.encode()) < MOST


@pytest.mark.larger
def test_the_page_of_lte_is_gone_through_by_keyboard(chromium, tmp_path):
    text = of_lte(HeadsRun(steps=24))
    assert len(text.encode()) < MOST
    (tmp_path / "lte.html").write_text(text, encoding="utf-8")
    with browser.opened(chromium, tmp_path / "lte.html", width=400, dark=True) as page:
        tab = page.tab
        tab.focus("#flow [data-key=merge]")
        keys(tab, "Enter")
        assert tab.inner_text("#said").startswith("Merge: merge 1")
        tab.focus("#step")
        keys(tab, "ArrowRight")
        assert tab.inner_text("#said").startswith("Reset:")
        tab.focus("#tab-0")
        for name in ("Heads", "Subspaces", "The weight", "Curves"):
            assert tab.inner_text("[role=tab][aria-selected=true]") == name
            assert "[object" not in tab.inner_text("#panel")
            assert page.violations() == [], name
            assert not page.overflows(), name
            keys(tab, "ArrowRight")
        tab.focus("#filter-0")
        keys(tab, "ArrowRight")
        assert page.faults == []


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.npz"
    example = Path(__file__).resolve().parents[2] / "examples" / "record_trace.py"
    subprocess.run(
        [sys.executable, str(example), str(file)], check=True, capture_output=True, timeout=120
    )
    return file


def test_a_recording_is_explained_and_its_wrong_quantity_marked(trace, tmp_path):
    frame, steps = explain_recording(trace)
    assert [step.number for step in steps] == list(range(5))
    assert all(step.wrong == () for step in steps)
    by = {q.key: q for q in steps[2].quantities}
    assert list(by) == ["theta", "p_pred", "e", "H", "R_used", "S", "K", "theta_post", "p_post"]
    with np.load(trace) as recorded:
        arrays = dict(recorded)
    for name in ("H", "S", "K"):
        assert (by[name].value == arrays[f"2/{name}"]).all()
    assert (by["theta_post"].value == arrays["3/theta"]).all()
    arrays["2/K"] = 1.001 * arrays["2/K"]
    arrays["4/p"] = 0.9 * arrays["4/p"]
    np.savez(tmp_path / "wrong.npz", **arrays)
    frame, steps = explain_recording(tmp_path / "wrong.npz")
    assert [step.wrong for step in steps][2:4] == [("K",), ("p_post",)]
    text = of_recording(frame, steps)
    assert "The first wrong quantity: trace/2/K: K[" in text
    carried = document(text)["walks"][0]["steps"][2]
    assert carried["wrong"][0] == "K"
    assert carried["off"]["K"] == pytest.approx(1e-3)
    states = {
        name: array for name, array in arrays.items() if name.split("/")[-1] in ("theta", "p")
    }
    np.savez(tmp_path / "states.npz", **states)
    with pytest.raises(InputError, match="states alone"):
        explain_recording(tmp_path / "states.npz")


@pytest.mark.larger
def test_the_page_of_a_recording_opens(chromium, trace, tmp_path):
    (tmp_path / "trace.html").write_text(of_recording(*explain_recording(trace)), encoding="utf-8")
    with browser.opened(chromium, tmp_path / "trace.html", width=400) as page:
        page.tab.focus("#tab-0")
        for _ in range(5):
            assert "[object" not in page.tab.inner_text("#panel")
            assert page.violations() == []
            assert not page.overflows()
            keys(page.tab, "ArrowRight")
        page.tab.focus("#step")
        keys(page.tab, "End")
        assert page.faults == []


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["loko-ref", "explain", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


def test_the_command_writes_a_page_or_says_what_is_wrong(monkeypatch, tmp_path, capsys):
    file = tmp_path / "walk.html"
    assert run(monkeypatch, "tiny", "--steps", "1", "--html", str(file)) == 0
    assert "MB; open it" in capsys.readouterr().out
    assert len(file.read_bytes()) < MOST
    for words, needle in (
        (["small"], "tiny"),
        (["tiny", "--seed", "1"], "no --seed with 'tiny'"),
        (["lte", "--seed", "1"], "no --seed with 'lte'"),
        (["lte", "--html", str(file), "--batch", "1"], "no --batch with 'lte'"),
        (["lte", "--html", str(file), "--heads", "65"], "heads: got 65"),
        (["tiny", "--heads", "2"], "no --heads, or 'lte' and --html F"),
        (["lte", "--merge-every", "2"], "no --merge-every, or 'lte' and --html F"),
        (["tiny", "--case", "loko.run/glm/float64"], "no --case with 'tiny'"),
        (["--case", "loko.run/glm/float32", "--data", "iris"], "no --data with --case"),
        (["--case", "loko.run/gml/float64"], "loko.run/glm/float64"),
        (["--case", "lora.delta/tiny/float64"], "loko.step or loko.run"),
        (["tiny", "--steps", "0", "--html", str(file)], "steps"),
        (["tiny", "--html", str(tmp_path / "absent" / "x.html")], "--html"),
    ):
        assert run(monkeypatch, *words) == 2
        err = capsys.readouterr().err
        assert needle in err
        assert err.count("\n") == 1


CASES = [case.id for name in OPERATIONS for case in select(name, "float64")]


@pytest.mark.sampled(1 / len(CASES))
@pytest.mark.parametrize("key", CASES)
def test_a_case_is_walked_through(key):
    source = from_case(key)
    text, _ = of_source(source, key, steps=min(2, source.steps))
    assert len(text.encode()) < MOST
    carried = document(text)["walks"][0]["steps"][0]
    case = next(case for case in select(key))
    theta = expected(case)["theta"]
    theta = theta[0] if source.steps > 1 else theta
    (step,) = explain(source, steps=1)
    by = {q.key: q.value for q in step.quantities}
    np.testing.assert_allclose(by["theta_post"], theta, rtol=1e-9, atol=1e-12)
    assert carried["stats"]["theta_post"][0] == by["theta_post"].min()
