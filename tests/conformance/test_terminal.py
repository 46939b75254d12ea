"""The terminal's report: equal failures in one block, a wrong implementation in one screen."""

import io
import json
from html import unescape

import numpy as np
import pytest
from rich.console import Console

from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.diagnose.naming import Mistake, name_mistakes
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.answer import NOT_OFFERED, Answer, Finding
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import Mutant, all_mutants, as_implementation
from loko_ref.conformance.reports import document as report
from loko_ref.conformance.reports import terminal
from loko_ref.conformance.reports import text as words
from loko_ref.conformance.reports.report import Report

pytestmark = pytest.mark.verdict
ONE_SCREEN = 60


def printed(checks, mistakes=None, notes=(), target="mine.py", verbose=True):
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    terminal.print_report(console, target, checks, notes, mistakes, verbose=verbose)
    return stream.getvalue()


def mutant(key, cases):
    one = next(m for m in all_mutants() if m.id == key)
    checks = run(Implementation(target=key, functions=as_implementation(one, one.example)), cases)
    return checks, name_mistakes(checks)


def answered(case, change):
    """Judge the oracle's own outputs, changed."""
    outputs = {k: np.array(v).astype(case.dtype) for k, v in expected(case).items()}
    return judge(case, Answer(outputs=change(outputs)))


def finding(case, kind, message, quantity=None):
    return judge(case, Answer(finding=Finding(kind=kind, message=message, quantity=quantity)))


def test_one_mistake_is_one_block_over_operations():
    cases = select("lora.*") + select("kalman.diagonal_update", "float64")
    checks, mistakes = mutant("SCALE-ALPHA", cases)
    failed = [c for c in checks if c.status == "failed"]
    groups = words.group(checks, mistakes)
    assert sum(len(g.checks) for g in groups) == len(failed) > 10
    assert {g.mistake.mutant.id for g in groups} == {"SCALE-ALPHA"}
    assert [g.what for g in groups] == ["delta is off first"]
    assert groups[0].shown.case.id == "lora.delta/tiny/float64"
    text = printed(checks, mistakes)
    assert text.count("mistake SCALE-ALPHA: alpha for alpha / r; it reproduces") == 1
    assert "covers: " not in text  # there is a name
    assert text.count("\n    correct formula: scale = alpha / r") == 1
    assert "  in: lora.delta " in text
    assert len(text.splitlines()) < ONE_SCREEN
    # the JSON report has them all, with their mistakes
    document = report.as_json("mine.py", checks, (), mistakes)
    listed = [c for c in document["checks"] if c["status"] == "failed"]
    assert [c["id"] for c in listed] == [c.case.id for c in failed]
    assert all(c["mistakes"][0]["id"] == "SCALE-ALPHA" for c in listed)


def test_the_one_shown_is_the_smallest_in_float64():
    checks, mistakes = mutant("S-NO-R", select("kalman.diagonal_update"))
    (first, *_) = words.group(checks, mistakes)
    assert first.shown.case.id == "kalman.diagonal_update/tiny/float64"
    text = printed(checks, mistakes)
    others = [c.case.id for c in first.checks if c is not first.shown]
    assert f"  also: {', '.join(others[:4])}, and {len(others) - 4} more\n" in text
    again = "reproduce: loko-ref verify mine.py --only kalman.diagonal_update/tiny/float64"
    assert text.count(again) == 1


def test_the_one_shown_is_no_combination_of_options():
    """A fault is shown by the simplest case, whatever the order, and by a step, not a run."""
    globs = ("loko.step/glm/*", "loko.step/glm-glm-before-*", "loko.run/glm/*")
    checks = [answered(c, lambda out: {"e": out["e"] + 1}) for g in globs for c in select(g)]
    for order in (checks, checks[::-1]):
        (one,) = words.group(order)
        assert one.shown.case.id == "loko.step/glm/float64"


def test_what_failed_comes_first_and_what_to_type_last():
    cases = select("kalman.diagonal_update") + select("lora.delta")
    checks = [
        answered(c, lambda out: {**out, "S": out["S"] * 2})
        if c.operation.name != "lora.delta"
        else judge(c, Answer(declined=NOT_OFFERED))
        for c in cases
    ]
    text = printed(checks, notes=["a note"])
    assert text.index("FAILED ") < text.index("┃ operation") < text.index("note a note")
    assert "lora.delta" not in text
    assert NOT_OFFERED not in text
    key = words.group(checks)[0].shown.case.id
    assert text.endswith(f"\nnext: loko-ref verify mine.py --only {key}\n")
    assert "next:" not in printed([answered(cases[0], dict)])
    nothing = printed([c for c in checks if c.status == "unsupported"])
    assert f"unsupported {NOT_OFFERED} (8): lora.delta 8\n" in nothing


def test_everything_wrong_is_one_screen():
    def wrong(name):
        def function(**keywords):
            raise RuntimeError(f"{name} is not there")

        return function

    cases = list({c.operation.name: c for c in reversed(all_cases())}.values())  # one of each
    names = [c.operation.name for c in cases]
    target = Implementation(target="x", functions={name: wrong(name) for name in names})
    checks = run(target, cases)
    text = printed(checks, {})
    assert len(words.group(checks)) == len(names) > 15
    blocks = [line for line in text.splitlines() if line.startswith("FAILED ")]
    assert len(blocks) == len(names)
    assert sum("such as" in line for line in blocks) == len(names) - words.BLOCKS
    assert text.count("  reproduce: ") == words.BLOCKS
    table = len(names) + 5
    assert len(text.splitlines()) - table < ONE_SCREEN + len(names)


def test_without_a_name_one_quantity_is_one_kind_in_operations_that_compute_it_alike():
    pick = select("kalman.diagonal_update/random/float64") + select("kalman.dense_update/random/*")
    checks = [answered(c, lambda out: {**out, "K": out["K"] * 1.5}) for c in pick]
    groups = words.group(checks, {c.case.id: [] for c in checks})
    assert [(g.what, len(g.checks), g.mistake) for g in groups] == [
        ("K is off first", 3, None),
    ]
    text = printed(checks, {c.case.id: [] for c in checks})
    assert f"  covers: {groups[0].shown.case.covers}\n" in text
    others = [answered(c, lambda out: {"theta": out["theta"] + 1}) for c in select("optimizer.*")]
    found = words.group([*others, answered(pick[0], lambda out: {"theta": out["theta"] + 1})])
    assert [g.what for g in found] == ["theta is off first"] * 4  # three optimizers, a filter
    assert "No known mistake reproduces 3 of the wrong results." in printed(
        checks, {c.case.id: [] for c in checks}
    )


def test_findings_are_told_apart_by_their_words_not_their_numbers():
    cases = select("kalman.diagonal_update", "float64")[:6]
    checks = [
        finding(cases[0], "crashed", "exited with code 3; stderr: bad pointer 0x7ffe12 at 17"),
        finding(cases[1], "crashed", "exited with code 3; stderr: bad pointer 0x7ffea9 at 8"),
        finding(cases[2], "crashed", "was killed by SIGSEGV"),
        finding(cases[3], "shape", "K has shape (3, 12), not (12, 3)", "K"),
        finding(cases[4], "shape", "K has shape (6, 60), not (60, 6)", "K"),
        finding(cases[5], "timeout", "did not answer within 1 s"),
    ]
    assert [(g.what, len(g.checks)) for g in words.group(checks)] == [
        ("the command ended", 2),
        ("the command ended", 1),
        ("K has another shape", 2),
        ("no answer in time", 1),
    ]
    text = printed(checks)
    assert "bad pointer 0x7ffe12 at 17" in text
    assert "FAILED 1 check: no answer in time" in text


def test_what_did_not_come_back_is_said():
    (case,) = select("kalman.diagonal_update/random/float64")
    check = answered(case, lambda out: {"theta": out["theta"] + 1, "p": out["p"]})
    assert "not returned, and before it in the dataflow: S, K\n" in printed([check])
    whole = answered(case, lambda out: {**out, "theta": out["theta"] + 1})
    assert "not returned" not in printed([whole])


def test_nothing_ran_has_no_table():
    cases = select("lora.*")
    checks = [judge(c, Answer(declined="not yet")) for c in cases]
    text = printed(checks, {}, ["a note"])
    assert "┃" not in text
    assert f"unsupported not yet ({len(cases)}): lora.delta 8, lora.merge 10\n" in text
    assert "note a note" in text
    assert "tolerance" not in text
    assert text.endswith(f"NOTHING RAN: {len(cases)} unsupported\n")


def test_markup_in_messages_is_no_markup():
    (case,) = select("lora.delta/tiny/float64")
    message = "raised KeyError: '[/red]' [bold]x[/bold] [link=http://a]"
    text = printed([finding(case, "raised", message)], target="[red]mine[/red].py")
    assert message in text
    assert "[red]mine[/red].py" in text
    json.dumps(report.as_json("x", [finding(case, "raised", message)]))


def test_a_run_has_its_teacher_forced_walk():
    checks, mistakes = mutant("S-JITTER", select("loko.run/gaussian-residual/float64"))
    (first,) = words.group(checks, mistakes)
    # one run tells neither from the other: both are named, in the order of the catalogue
    assert (first.mistake.mutant.id, first.mistake.alike) == ("S-JITTER", ("R-JITTER",))
    assert "teacher-forced" in printed(checks, mistakes)


def test_verdict_and_first_fault_with_its_formula_are_in_the_first_25_lines_of_80_columns():
    fault = Mistake(
        mutant=next(m for m in all_mutants() if m.id == "SCALE-ALPHA"),
        size=None,
        ratio=0.1,
        explained=6,
        failed=6,
    )
    named = [answered(c, lambda out: {"delta": out["delta"] * 3}) for c in select("lora.delta")[:6]]
    right = [answered(c, dict) for c in select("kalman.time_update")[:6]]
    more = [
        answered(c, lambda out: {**out, "S": out["S"] * 2}) for c in select("kalman.dense*")[:16]
    ]
    checks = [*named, *right, *more]
    mistakes = {c.case.id: [fault] for c in named} | {c.case.id: [] for c in more}
    known = {c.case.id: "ticket 7" for c in more[:12]}
    text = {}
    for verbose in (False, True):
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=True, color_system=None)
        terminal.print_report(
            console, "mine.py", checks, ["a note"], mistakes, known, verbose=verbose
        )
        text[verbose] = stream.getvalue()
        lines = text[verbose].splitlines()
        assert max(map(len, lines)) <= 80 + len("  reproduce: ")  # what is copied is not broken
        assert lines[1].startswith("FAILED: 10 of 28; 6 passed, 12 expected failures")
        top = "\n".join(lines[:25])
        assert "mistake SCALE-ALPHA: alpha for alpha / r; it reproduces 6 of 6" in top
        assert "\n    correct formula: scale = alpha / r\n" in top
        assert "first off: delta[" in top
        assert top.index("correct formula") < top.index("first off")
    short, long = text[False], text[True]
    assert "all 6 checks of 1 more operation passed (-v)" in short
    assert "kalman.time_update" not in short
    assert "│ kalman.time_update" in long
    assert short.count("\nexpected failure ") == words.LISTED
    assert f"and {12 - words.LISTED} more expected failures (-v)" in short
    assert long.count("\nexpected failure ") == 12
    assert "FAILED 4: S is off first, such as kalman.dense_update/" in short
    assert "  correct formula: S = H P H' + R\n" in long
    assert "unit roundoff" in " ".join(long.split())
    assert "roundoff" not in short


def test_only_what_is_read_is_broken_not_what_is_copied():
    long = "word " * 40
    broken = terminal._broken(f"    {long}", 80)
    assert all(len(line) <= 80 for line in broken.splitlines())
    assert broken.splitlines()[1].startswith("      word")
    for start in terminal.COPIED:
        assert terminal._broken(f"  {start}{long}", 80) == f"  {start}{long}"


def test_two_wrong_quantities_have_two_formulas_in_every_report():
    (case,) = select("kalman.diagonal_update/random/float64")
    check = answered(case, lambda out: {**out, "S": out["S"] * 2, "p": out["p"] * 3})

    def searched(quantity, text):
        one = Mutant(id=f"FORMULA-{quantity}-0", name=text, explanation="E", look="", changes=dict)
        return Mistake(mutant=one, size=None, ratio=1.0, explained=1, failed=1, quantity=quantity)

    fits = [searched("S", "S = 2 (H P H' + R)"), searched("p", "p = 3 p"), searched("p", "p = 4 p")]
    found = Report(target="t", checks=(check,), mistakes={case.id: fits})
    right = {"S": "S = H diag(p) H' + R", "p": "p = p o (1 - diag(K H))"}
    for source in (found.text, found.to_html(), found._repr_html_(), found.to_junit().decode()):
        page = unescape(source)
        for part in ("S = 2 (H P H' + R)", "p = 3 p", *right.values()):
            assert part in page, part
        assert "p = 4 p" not in page
        assert page.index("p = 3 p") < page.rindex(right["p"])
