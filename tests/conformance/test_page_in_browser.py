"""The report in a browser: what is on the first screen, how long it is, keyboard and filter."""

import browser
import numpy as np
import pytest

from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.answer import Answer, Finding
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import all_mutants, as_implementation
from loko_ref.conformance.reports import page
from loko_ref.conformance.reports.report import Report

pytestmark = pytest.mark.larger
SIZES = [(1280, False), (400, True)]


def functions(key, glob):
    one = next(m for m in all_mutants() if m.id == key)
    made = as_implementation(one, one.example)
    return {name: made[name] for name in made if name.startswith(glob)}


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """Write the report of a run with two faults and more than forty failures."""
    own = functions("S-NO-R", "kalman.diagonal") | functions("SCALE-ALPHA", "lora.")
    checks = run(
        Implementation(target="mine.py", functions=own),
        select("kalman.diagonal_update") + select("lora.*"),
    )
    assert sum(check.status == "failed" for check in checks) > 40
    file = tmp_path_factory.mktemp("report") / "forty.html"
    file.write_text(page.as_html("mine.py", checks, (), name_mistakes(checks)), encoding="utf-8")
    return file


def test_the_first_fault_and_its_formula_are_on_the_first_screen(chromium, forty):
    with browser.opened(chromium, forty) as shown:
        card = shown.tab.locator(".fault").first
        assert "S-NO-R" in card.locator("h3").inner_text()
        pair = card.locator(".pair")
        assert "S = H @ (p[:, None] * H.T) + R" in pair.inner_text()
        box = pair.bounding_box()
        assert 0 < box["y"] < box["y"] + box["height"] < 800
        assert shown.faults == []


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_it_is_accessible_and_fits_folded_and_open(chromium, forty, width, dark):
    with browser.opened(chromium, forty, width=width, dark=dark) as shown:
        for name in ("Open all", None):
            assert shown.violations() == []
            assert not shown.overflows()
            if name:
                shown.tab.get_by_role("button", name=name).click()
                shown.tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = 1)")
        assert shown.tab.get_by_role("button", name="Close all").is_visible()
        assert shown.faults == []


def test_the_filter_leaves_what_has_every_word(chromium, forty):
    with browser.opened(chromium, forty) as shown:
        faults, box = shown.tab.locator(".fault"), shown.tab.get_by_label("Filter")
        kinds = faults.count()
        box.fill("LORA.merge float32")
        assert shown.tab.locator("#matching").inner_text() == f"1 of {kinds} kinds"
        assert "SCALE-ALPHA" in faults.locator("visible=true").locator("h3").inner_text()
        listed = shown.tab.locator(".fault:not([hidden]) .checks li:not([hidden])")
        assert all("lora.merge" in text for text in listed.all_text_contents())
        assert listed.count() > 0
        box.fill("no such thing")
        assert shown.tab.locator("#matching").inner_text() == f"0 of {kinds} kinds"
        box.fill("")
        assert faults.locator("visible=true").locator("h3").count() == kinds


def test_the_contents_open_a_card_by_keyboard(chromium, forty):
    with browser.opened(chromium, forty) as shown:
        second = shown.tab.locator(".fault").nth(1)
        assert second.get_attribute("open") is None
        shown.tab.locator("nav a").nth(2).focus()
        shown.tab.keyboard.press("Enter")
        shown.tab.wait_for_function("document.querySelectorAll('.fault')[1].open")
        assert shown.tab.evaluate("document.activeElement.closest('.fault summary') !== null")
        shown.tab.keyboard.press("Enter")  # the summary has the focus
        assert second.get_attribute("open") is None


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_a_label_opens_its_derivation_above_the_page(chromium, forty, width, dark):
    with browser.opened(chromium, forty, width=width, dark=dark) as shown:
        shown.tab.locator("a.label", has_text="KAL-2").first.focus()
        shown.tab.keyboard.press("Enter")
        dialog = shown.tab.get_by_role("dialog")
        assert "Innovation covariance and gain" in dialog.inner_text()
        assert dialog.locator("math").count() > 10
        assert shown.violations() == []
        assert not shown.overflows()
        shown.tab.keyboard.press("Escape")
        assert not dialog.is_visible()
        shown.tab.goto(f"{shown.tab.url}#KAL-2")  # a link from elsewhere opens it in its place
        assert shown.tab.locator("#KAL-2").is_visible()
        assert shown.faults == []


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_many_failures_of_many_kinds_are_a_short_page(chromium, tmp_path, width, dark):
    rng = np.random.default_rng(0)
    small = ("kalman", "observation", "noise", "lora", "optimizer")
    cases = [c for c in all_cases() if c.operation.name.startswith(small)]
    checks = []
    for number, case in enumerate([*cases, *select("model.forward")[:20]]):
        out = {k: np.array(v) for k, v in expected(case).items()}
        name = list(out)[rng.integers(len(out))]
        out[name] = out[name] + rng.normal(size=out[name].shape) + 1
        finding = Finding(kind="raised", message="raised ValueError: " + chr(97 + number % 26) * 70)
        outputs = {k: v.astype(case.dtype) for k, v in out.items()}
        answer = Answer(finding=finding) if number % 4 == 0 else Answer(outputs=outputs)
        checks.append(judge(case, answer))
    assert sum(check.status == "failed" for check in checks) >= 172
    file = tmp_path / "wrong.html"
    file.write_text(page.as_html("wrong.py", checks), encoding="utf-8")
    with browser.opened(chromium, file, width=width, dark=dark) as shown:
        assert shown.tab.evaluate("document.documentElement.scrollHeight") < 6000
        assert not shown.overflows()
        assert shown.violations() == []


@pytest.mark.parametrize("colours", ["color:#111;background:#fff", "color:#eee;background:#111"])
def test_the_card_of_a_notebook_suits_light_and_dark(chromium, tmp_path, colours):
    functions_ = functions("SCALE-ALPHA", "lora.delta")
    checks = run(Implementation(target="m", functions=functions_), select("lora.delta"))
    report = Report(target="m", checks=tuple(checks), mistakes=name_mistakes(checks))
    head = '<!DOCTYPE html><html lang="en"><title>n</title>'
    file = tmp_path / "notebook.html"
    cell = f"<main><h1>n</h1>{report._repr_html_()}</main>"
    file.write_text(f'{head}<body style="{colours}">{cell}</body></html>', encoding="utf-8")
    with browser.opened(chromium, file, width=400) as shown:
        assert "scale = alpha / r" in shown.tab.locator("details[open]").first.inner_text()
        assert shown.violations() == []
        assert not shown.overflows()
