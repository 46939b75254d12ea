"""A report beside an earlier one, what a run could reveal, and what of it can be cited."""

import json
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from command import loko_ref

from loko_ref import __version__
from loko_ref.conformance import verify, verify_recording
from loko_ref.conformance.cases import digest
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.diagnose import baseline
from loko_ref.conformance.diagnose.coverage import coverage
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import judge
from loko_ref.conformance.judge.answer import Answer, Finding
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.reports.report import Report
from loko_ref.errors import InputError
from loko_ref.files import documents

OP = "kalman.diagonal_update"
CASES = select(f"{OP}/random*", "float64") + select("lora.delta/tiny/*")


def answered(case, *names, **change):
    """Judge the oracle's outputs, or some of them, each multiplied as asked."""
    out = {k: np.array(a).astype(case.dtype) for k, a in expected(case).items()}
    kept = {k: a * change.get(k, 1) for k, a in out.items() if not names or k in names}
    return judge(case, Answer(outputs=kept))


def declined(case):
    return judge(case, Answer(declined="no"))


def report(checks, target="mine.py", names=True, **more):
    mistakes = name_mistakes(checks) if names else {}
    return Report(target=target, checks=tuple(checks), mistakes=mistakes, **more)


def changes(path, before, after):
    path.write_text(report(before).to_json())
    checks = list(after)
    return baseline.compare(path, baseline.read(path), checks, name_mistakes(checks))


def test_every_kind_of_change_is_found(tmp_path):
    one, two, *tiny = CASES
    before = [answered(one, K=2), answered(two), declined(tiny[0]), answered(tiny[1], delta=2)]
    after = [answered(one, S=2), answered(two, p=2), answered(tiny[0]), declined(tiny[1])]
    found = changes(tmp_path / "old.json", before, after)
    assert found.failing == (two.id,)
    assert found.fixed == ()
    assert found.first_quantity == {one.id: ("K", "S")}
    assert list(found.mistake) in ([], [one.id])
    assert (found.run, found.not_run) == ((tiny[0].id,), (tiny[1].id,))
    assert (found.new, found.gone) == ((), ())
    back = changes(tmp_path / "back.json", after, before[:2])
    assert back.fixed == (two.id,)
    assert back.gone == (tiny[0].id, tiny[1].id)
    assert changes(tmp_path / "new.json", before[:1], before[:2]).new == (two.id,)
    same = changes(tmp_path / "same.json", before, before)
    assert list(same.lines()) == [f"since {tmp_path / 'same.json'}: nothing changed"]
    text = "\n".join(found.lines())
    assert f"newly failing (1): {two.id}" in text
    assert f"first off is another quantity (1): {one.id} (K, now S)" in text
    made = report(after, changes=found)
    jsonschema.validate(made.document, documents.load("verify"))
    assert made.document["changes"]["first_quantity"] == [{"id": one.id, "before": "K", "now": "S"}]
    assert made.document["changes"]["since"]["target"] == "mine.py"
    assert text in made.text


def test_another_name_is_a_change(tmp_path):
    case = CASES[-1]
    names = name_mistakes([answered(case, delta=len(case.inputs()["A"]))])
    assert names[case.id][0].mutant.id == "SCALE-ALPHA"
    alpha = answered(case, delta=len(case.inputs()["A"]))
    found = changes(tmp_path / "o.json", [alpha], [answered(case, delta=1.5)])
    assert found.mistake[case.id][0] == "SCALE-ALPHA"
    assert found.mistake[case.id][1] != "SCALE-ALPHA"


FAULTS = {
    "list": ("[]", "schema None"),
    "another document": ('{"schema": "loko-ref/case/1"}', "another document"),
    "another version": ('{"schema": "loko-ref/verify/1"}', "written by another version"),
    "no checks": ('{"schema": "loko-ref/verify/2"}', "no list 'checks'"),
    "text": ('{"schema": "loko-ref/verify/2", "checks": ["x"]}', "checks[0] None"),
    "no status": ('{"schema": "loko-ref/verify/2", "checks": [{"id": "a"}]}', "checks[0] 'a'"),
    "no JSON": ("{", "no JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_report_is_refused(tmp_path, name):
    content, words = FAULTS[name]
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(InputError) as error:
        verify({"lora.delta": print}, only="lora.delta/tiny/*", baseline=tmp_path / "old.json")
    assert str(error.value).startswith("baseline, ")
    assert words in str(error.value)


def test_the_command_takes_a_baseline(tmp_path):
    mine, old = tmp_path / "mine.py", tmp_path / "old.json"
    text = "def lora_delta(A, B, alpha):\n    return {{'delta': (alpha / {} * (B @ A))"
    text += ".astype(A.dtype)}}\n"
    mine.write_text(text.format(1))
    words = ["verify", mine, "--only", "lora.delta/tiny/*"]
    assert loko_ref(*words, "--json", old).returncode == 1
    mine.write_text(text.format("len(A)"))
    new = tmp_path / "new.json"
    done = loko_ref(*words, "--baseline", old, "--json", new)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fixed (2): lora.delta/tiny/float64, lora.delta/tiny/float32" in done.stdout
    assert len(json.loads(new.read_text())["changes"]["fixed"]) == 2
    done = loko_ref(*words, "--baseline", old, "--json", old)
    assert done.returncode == 2
    assert "the file of --baseline" in done.stderr
    done = loko_ref(*words, "--baseline", mine)
    assert done.returncode == 2
    assert done.stderr.startswith("loko-ref: --baseline")


# --------------------------------------------------------------------------- what was revealed


def test_outputs_that_were_not_returned_hide_mistakes():
    """What is said to become visible does, and what is visible fails a check: both by mutants."""
    cases = select(OP, "float64")
    whole = coverage([answered(c) for c in cases])
    assert whole.missing == ()
    assert set(whole.visible) == {key for c in cases for key in c.recipe.covers}
    results = coverage([answered(c, "theta") for c in cases])
    hidden = {key for one in results.missing for key in one.mistakes}
    assert hidden | set(results.visible) == set(whole.visible)
    assert hidden
    assert not hidden & set(results.visible)
    assert "return p (kalman.diagonal_update) too and " in results.text
    names = {one.output for one in results.missing}
    assert coverage([answered(c, "theta", *names) for c in cases]).missing == ()


def test_what_did_not_run_is_not_revealed():
    found = coverage([answered(c) for c in select("lora.delta")])
    every = {key for case in all_cases() for key in case.recipe.covers}
    assert set(found.visible) | set(found.not_run) == every
    assert f"{len(found.not_run)} of {len(every)} known mistakes are shown by" in found.text
    assert coverage([declined(c) for c in select("lora.delta")]).visible == ()
    wrong = judge(CASES[0], Answer(outputs={}))
    assert coverage([wrong]).visible == ()


def test_what_raised_is_not_said_to_lack_an_output():
    """An error is to be mended: that more should be returned is no advice there."""
    case = select("model.forward/text/float64")[0]
    found = coverage(
        [judge(case, Answer(finding=Finding(kind="raised", message="raised KeyError")))]
    )
    assert found.missing == ()
    assert set(case.recipe.covers) <= set(found.not_run)
    assert "return z" not in found.text
    assert "did not run or returned nothing" in found.text


def test_combinations_count_where_a_check_passed_and_none_failed():
    (glm,) = select("loko.step/glm/float64")
    (other,) = select("loko.step/gaussian-fixed-before-decoupled/float64")
    (run,) = select("loko.run/glm/float64")
    found = coverage([answered(glm), answered(other)])
    assert found.combinations == (
        "gaussian-fixed-before-decoupled",
        "glm-glm-before-decoupled",
    )
    assert found.possible == 60
    assert coverage([answered(glm), answered(run, e=2)]).combinations == ()
    cite = report([answered(glm), answered(other)], names=False).citation
    assert re.fullmatch(
        rf"verified with loko_ref {re.escape(__version__)}, operations/3 digest [0-9a-f]{{16}}, "
        "2 of 2 checks, 2 of 60 combinations",
        cite,
    )
    failed = report([answered(glm), answered(run, e=2)], names=False)
    assert failed.citation.startswith("not verified with ")
    assert "1 of 2 checks, 0 of 60 combinations" in failed.citation
    assert f"cite: {failed.citation}" in failed.text
    assert "combinations" not in report([answered(CASES[0])]).citation
    nothing = report([declined(glm)])
    assert nothing.citation == ""
    assert nothing.document["citation"] is None
    assert "cite:" not in nothing.text


# ----------------------------------------------------------------------------------- the digest


def test_the_digest_is_of_the_content_not_of_rounding():
    cases = select("kalman.*") + select("lora.delta") + select("loko.step/glm/*")
    operations = [OPERATIONS[name] for name in ("kalman.dense_update", "loko.step")]
    digest_of = digest.digest_of
    right = digest_of(operations, cases)
    assert digest.catalogue_digest().endswith(digest_of(OPERATIONS.values(), all_cases()))

    def moved(case, by):
        def disturbed(a):
            return a if isinstance(a, dict) else a * (1 + by * (-1.0) ** np.arange(np.shape(a)[-1]))

        def build(draw, dtype):
            return {k: disturbed(a) for k, a in case.recipe.build(draw, dtype).items()}

        return replace(case, recipe=replace(case.recipe, build=build))

    assert digest_of(operations, [moved(c, 4e-16) for c in cases]) == right
    last, dense = cases[-1], operations[0]
    options = replace(last.recipe, options={**last.recipe.options, "lam": 0.5})
    renamed = replace(cases[0], id="kalman.dense_update/x/float64")
    shorter = replace(dense, outputs=dense.outputs[:-1])
    others = [
        digest_of(operations, [moved(cases[0], 1e-3), *cases[1:]]),
        digest_of(operations, cases[1:]),
        digest_of(operations, [renamed, *cases[1:]]),
        digest_of(operations, [*cases[:-1], replace(last, recipe=options)]),
        digest_of([shorter, operations[1]], cases),
    ]
    assert len({right, *others}) == len(others) + 1


def test_of_a_recording_alone_no_known_mistake_is_called_hidden(tmp_path):
    """Its quantities are no cases of the catalogue, and no mistake is sought in those."""
    path = tmp_path / "run.npz"
    p = np.array([0.5, 0.25])
    np.savez(path, **{"0/theta": p, "0/p": p, "0/p_pred": p})
    found = verify_recording(path)
    assert found.summary.exit_code == 0
    assert "cite: verified with" in found.text
    assert "not revealed" not in found.text
