"""The page: complete, self-contained, and safe whatever an exception says."""

import importlib.util
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from command import loko_ref

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.judge.answer import Answer, Finding
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.conformance.reports import page
from loko_ref.conformance.reports.page import drawing
from loko_ref.conformance.reports.report import Report
from loko_ref.errors import InputError
from loko_ref.files.pages import own

pytestmark = pytest.mark.verdict

TARGETS = Path(__file__).parent / "targets.py"
OP = "kalman.diagonal_update"
VOID = {"meta", "path", "rect", "input"}


class Outline(HTMLParser):
    """Tags, attributes and text; complains of tags that do not match."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not self.open or self.open[-1] not in ("script", "style") else ""


def jitter():
    return run(load(f"{TARGETS}:JITTER"), select(f"{OP}/random*"))


def test_a_failure_has_its_walk_its_element_its_map_and_its_mistake():
    checks = jitter()
    source = page.as_html("mine.py", checks, ["a note"], name_mistakes(checks))
    outline = Outline(source)
    text = " ".join(outline.text.split())
    assert "FAILED: 2 of 4; 2 passed, 0 unsupported" in text
    assert "R-JITTER: jitter added to R, size about 1e-09" in text
    assert "Correct formula R enters as it is given S = H diag(p) H' + R [KAL-2]" in text
    assert "Note: a note" in text
    assert f"loko-ref verify mine.py --only {OP}/random/float64" in text
    first = next(c for c in checks if c.status == "failed").divergence
    assert f"S[{first.index[0]}, {first.index[1]}]" in text
    assert f"{first.expected:.17g}" in text
    assert f"{first.got:.17g}" in text
    rows = [attributes.get("class") for tag, attributes in outline.tags if tag == "tr"]
    walk = [mark for mark in rows if mark]
    assert walk == ["first", "off", "off", "off"]  # S, K, theta, p
    assert sum(tag == "caption" for tag, _ in outline.tags) == 3  # expected, got, difference
    assert not any(tag == "svg" for tag, _ in outline.tags)  # they show all of S
    assert "covers: " not in text  # there is a name
    assert "and 1 more of this kind" in text
    assert f"{OP}/random-variational/float64 S[" in text


def test_the_page_needs_nothing_else():
    checks = jitter()
    outline = Outline(page.as_html("mine.py", checks, (), name_mistakes(checks)))
    assert not {tag for tag, _ in outline.tags} & {"link", "img", "iframe", "object"}
    for tag, attributes in outline.tags:
        assert not set(attributes) & {"src", "onload"}
        assert tag != "script" or not attributes
        assert attributes.get("href", "#").startswith("#")


def test_many_failures_are_folded():
    """Hundreds of failures of one kind are one card, of many kinds at most CARDS; all are listed.

    Maps in which no two neighbours have one colour are drawn up to a bound.
    """
    rng = np.random.default_rng(0)
    cases = select("kalman.*", "float64")

    def noisy(case):
        factors = {k: 10.0 ** rng.integers(-4, 8, np.shape(a)) for k, a in tolerance(case).items()}
        out = {k: a + tolerance(case)[k] * factors[k] for k, a in expected(case).items()}
        return judge(case, Answer(outputs=out))

    one = [noisy(case) for case in cases if tolerance(case).get("K") is not None]
    kinds = []
    for number in range(40):
        finding = Finding(kind="raised", message=f"raised {chr(97 + number) * 9}")
        kinds.append(judge(cases[number % len(cases)], Answer(finding=finding)))
    one = [replace(check) for check in one if check.status == "failed" for _ in range(20)]
    source = page.as_html("mine.py", [*one, *kinds])
    assert len(source) < 300_000
    assert len(one) > 300
    outline = Outline(source)
    assert sum(a.get("class") == "card fault" for _, a in outline.tags) == page.CARDS
    contents = page.CARDS
    listed = sum(tag == "li" for tag, _ in outline.tags) - contents
    assert listed == len(one) + len(kinds) - page.CARDS
    assert chr(97 + 25) * 9 in outline.text


def test_hostile_text_is_escaped():
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\ud800"

    def raises(**keywords):
        raise RuntimeError(hostile)

    mine = Implementation(target="x", functions={OP: raises})
    checks = run(mine, select(f"{OP}/random/float64"))
    declined = judge(select(f"{OP}/tiny/float64")[0], Answer(declined=hostile))
    known = {checks[0].case.id: hostile}
    source = page.as_html(hostile, [*checks, declined], [hostile], {}, known)
    outline = Outline(source)
    assert "img" not in {tag for tag, _ in outline.tags}
    assert sum(tag == "script" for tag, _ in outline.tags) == 2  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert outline.text.count("<script>alert(1)") >= 5  # title, heading, note, failure, reasons
    assert "{{ 7 * 7 }}" in outline.text


def test_a_passing_run_says_so():
    case = select(f"{OP}/tiny/float64")[0]
    check = judge(case, Answer(outputs=expected(case)))
    text = Outline(page.as_html("mine.py", [check])).text
    assert "PASSED: 1 of 1; 0 unsupported" in " ".join(text.split())
    assert "Failures" not in text
    text = Outline(page.as_html("mine.py", [check], (), {}, {case.id: "ticket 7"})).text
    assert "FAILED: 1 of 1 (1 unexpected pass); 0 passed" in " ".join(text.split())
    assert f"Unexpected pass: {case.id} was expected to fail: ticket 7" in text
    check = judge(case, Answer(declined="no"))
    assert "NOTHING RAN" in page.as_html("mine.py", [check])


def off_by(case, quantity, index, ratio):
    """Answer right but for one element, so many tolerances off."""
    outputs = {name: value.copy() for name, value in expected(case).items()}
    outputs[quantity][index] += ratio * tolerance(case)[quantity][index]
    return judge(case, Answer(outputs=outputs))


@pytest.mark.parametrize(
    ("ratio", "colour"), [(5.0, "#fdd49e"), (50.0, "#fc8d59"), (np.inf, "#3d0000")]
)
def test_the_map_shows_the_element_in_its_colour(ratio, colour):
    case = select(f"{OP}/random/float64")[0]
    drawn = drawing.heat_map(off_by(case, "S", (1, 2), ratio))
    assert (drawn.rows, drawn.columns) == expected(case)["S"].shape
    assert drawn.mark == (1, 2)
    assert dict(drawn.paths)[colour] == "M2 1h1v1h-1z"


def test_a_vector_is_one_row():
    drawn = drawing.heat_map(off_by(select(f"{OP}/random/float64")[0], "p", (7,), 50.0))
    assert (drawn.rows, drawn.columns, drawn.mark) == (1, 12, (0, 7))


def test_a_run_is_drawn_by_step():
    case = select("loko.run/glm/float64")[0]
    check = off_by(case, "p", (3, 7), 50.0)
    drawn = drawing.heat_map(check)
    assert "rows are steps" in drawn.caption
    assert drawn.rows == len(expected(case)["p"])
    assert drawn.mark[0] == 3
    walked = [step["output"].name for step in page._walk(check)]
    assert walked == list(expected(case))  # diagonal: no P, no P_pred
    assert "step 3, p[7]" in page.as_html("mine.py", [check])


def test_a_map_has_at_most_64_cells_a_side_and_loses_no_error():
    plane = np.zeros((200, 3000))
    plane[130, 2999] = 5e2
    case = select(f"{OP}/random/float64")[0]
    check = off_by(case, "S", (1, 2), 5.0)
    check = replace(check, divergences=(replace(check.divergence, index=(130, 2999)),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "ratios", lambda case, outputs: {"S": plane})
        drawn = drawing.heat_map(check)
    assert max(drawn.rows, drawn.columns) <= drawing.CELLS
    assert "a cell is the worst of a block of 4 x 47" in drawn.caption
    assert drawn.mark == (32, 63)
    assert dict(drawn.paths)["#fc8d59"] == "M63 32h1v1h-1z"


def test_a_wrong_form_is_marked_in_the_walk():
    case = select(f"{OP}/random/float64")[0]
    finding = Finding(kind="shape", message="K has shape (3, 12)", quantity="K")
    check = judge(case, Answer(finding=finding))
    source = page.as_html("mine.py", [check])
    assert re.search(r'<tr class="first"><td>K</td>.*its form is wrong', source)
    assert "<svg" not in source


def test_cli_writes_it_whole_or_not_at_all(tmp_path):
    out = tmp_path / "r.html"
    command = ["verify", f"{TARGETS}:JITTER", "--only", f"{OP}/random/float64", "--html"]
    done = loko_ref(*command, out)
    assert done.returncode == 1, done.stderr
    assert Outline(out.read_text(encoding="utf-8")).text.count("jitter added to") >= 2
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(InputError, match="html: got"):
        Report(target="t", checks=()).write(html=tmp_path / "no" / "r.html")


def test_jinja2_is_in_the_extra():
    assert importlib.util.find_spec("jinja2") is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(ImportError, match=r"loko-ref\[cli\]"):
            page.as_html("t", [])


def test_small_quantities_are_printed_whole_and_large_ones_around_the_element():
    case = select(f"{OP}/random/float64")[0]
    whole = drawing.matrices(off_by(case, "S", (1, 2), 50.0))
    assert whole.whole
    assert [title for title, _ in whole.grids] == ["expected", "got", "got - expected"]
    assert whole.grids[2][1][1][2] == (f"{50 * tolerance(case)['S'][1, 2]:.2g}", "h4 at")
    assert {kind for line in whole.grids[2][1] for _, kind in line} == {"h0", "h4 at"}
    vector = drawing.matrices(off_by(case, "p", (7,), np.nan))
    assert (vector.rows, vector.columns) == (range(4, 11), range(1))
    assert vector.grids[1][1][3][0] == ("nan", "h7 at")
    run = drawing.matrices(off_by(select("loko.run/glm/float64")[0], "p", (39, 33), 50.0))
    assert (run.rows, run.columns) == (range(33, 40), range(29, 34))
    assert "the part of 40 x 34 around the element" in run.caption
    inner = drawing.matrices(off_by(select("loko.run/glm/float64")[0], "H", (3, 1, 20), 50.0))
    assert (inner.rows, inner.columns) == (range(3), range(18, 23))
    assert "step 3" in inner.caption


def test_the_colours_of_the_style_are_those_of_the_map():
    style = own("matrices.css", page.__name__)
    assert re.findall(r"\.h(\d) \{ background: (#\w+)", style) == [
        (str(k), colour) for k, (_, colour, _) in enumerate(drawing.COLOURS)
    ]
