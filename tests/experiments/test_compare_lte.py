"""``loko-ref compare lte``: runs are those of ``lte``, rates are chosen on other seeds."""

import dataclasses
import json

import jsonschema
import numpy as np
import pytest
from command import loko_ref

from loko_ref.errors import InputError
from loko_ref.experiments.compare import lte, lte_report
from loko_ref.experiments.compare.lte import BASE, FULL, SETTINGS, Claim, Run
from loko_ref.files import documents

FEW = {"steps": 4, "limit": 40}
BY_NAME = {one.name: one for one in SETTINGS}


@pytest.mark.parametrize(
    ("name", "words"),
    [(BASE, ["--lr", "0.004"]), (FULL, None), ("heads 2", ["--heads", "2", "--lr", "0.004"])],
)
@pytest.mark.larger
def test_a_run_is_the_one_of_the_command(name, words, tmp_path):
    found = lte.run(BY_NAME[name], "digits, mlp", 2.0, 1, FEW)
    out = tmp_path / "r.json"
    common = ["lte", "--seed", "1", "--steps", "4", "--limit", "40", "--json", out]
    done = loko_ref(*common, *(words or ["--lr", "0.004", "--baseline", "full"]))
    assert done.returncode == 0, done.stderr
    other = json.loads(out.read_text())
    other = other if words else other["baselines"][0]
    assert found.accuracy == other["test_accuracy"]
    assert found.bytes_sent == other["bytes_sent"]


def planted(accuracies, seconds=1.0):
    """Runs of a task by (setting, factor): accuracies by seed, reached at half of the steps."""
    return [
        Run(task="digits, mlp", setting=setting, factor=factor, seed=seed, accuracy=value,
            curve=((0, 0.1), (4, value / 2), (8, value)), seconds=seconds, effective_rank=2.0,
            bytes_sent=8)
        for (setting, factor), values in accuracies.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_rates_are_chosen_on_one_half_and_claims_judged_on_the_other():
    runs = planted({
        (FULL, 1.0): [0.9, 0.80, 0.9, 0.82, 0.9, 0.81],
        (FULL, 2.0): [0.1, 0.99, 0.1, 0.99, 0.1, 0.99],  # better where it does not count
    })  # fmt: skip
    runs += planted({(BASE, 1.0): [0.7, 0.70, 0.7, 0.73, 0.7, 0.71]}, seconds=2.0)
    found = lte.rows(runs, "digits, mlp", range(6))
    assert found[FULL].rate == 1.0
    np.testing.assert_array_equal(found[FULL].accuracy, [0.8, 0.82, 0.81])
    # LTE took twice as long: when full training ended it stood at half of its steps
    np.testing.assert_allclose(found[BASE].timed, found[BASE].accuracy / 2)
    np.testing.assert_array_equal(found[FULL].timed, found[FULL].accuracy)
    for claim, verdict in (
        (Claim(text="", first=FULL, second=BASE), "confirmed"),
        (Claim(text="", first=BASE, second=FULL), "refuted here"),
        (Claim(text="", first=BASE, second=BASE, parity=True), "confirmed"),
        (Claim(text="", first=BASE, second="heads 2"), "not tried"),
    ):
        assert lte.judge(claim, found)[0] == verdict
    noisy = dict(found)
    noisy[BASE] = dataclasses.replace(found[BASE], accuracy=np.array([0.9, 0.6, 0.95]))
    assert lte.judge(Claim(text="", first=BASE, second=FULL), noisy)[0] == "open"


def test_what_is_missing_is_every_rate_first_and_then_the_best():
    first = lte.missing([], ["digits, mlp"], range(4), FEW)
    own = [(job.factor, job.seed) for job in first if job.setting == BASE]
    assert own == [(f, s) for f in lte.RATES for s in (0, 2)]
    runs = [one for one in planted({(BASE, f): [f / 10] * 4 for f in lte.RATES})
            if one.seed in (0, 2)]  # fmt: skip
    later = lte.missing(runs, ["digits, mlp"], range(4), FEW)
    assert [(j.factor, j.seed) for j in later if j.setting == BASE] == [(4.0, 1), (4.0, 3)]


@pytest.mark.larger
def test_the_command_goes_on_and_its_document_fits(tmp_path, monkeypatch):
    some = tuple(dataclasses.replace(BY_NAME[name]) for name in (FULL, BY_NAME["LoRA"].name, BASE))
    for module in (lte, lte_report):
        monkeypatch.setattr(module, "SETTINGS", some)
    plan, kept = lte_report.plan(quick=True, seeds=2, steps=3, limit=40), []
    whole = lte_report.compare(plan, workers=1, ended=lambda runs, k, n: kept.append(list(runs)))
    path = tmp_path / "half.json"
    path.write_text(json.dumps(lte_report.as_document(kept[4], plan)))
    assert not json.loads(path.read_text())["complete"]
    again = lte_report.compare(plan, workers=1, before=lte_report.read(path, plan))
    plain = {dataclasses.replace(one, seconds=0.0) for one in whole}
    assert {dataclasses.replace(one, seconds=0.0) for one in again} == plain
    document = json.loads(json.dumps(lte_report.as_document(again, plan)))
    jsonschema.validate(document, documents.load("compare-lte"))
    assert len(document["summary"]["digits, mlp"]["claims"]) == len(lte.CLAIMS)
    with pytest.raises(InputError, match=r"plan\.steps"):
        lte_report.read(path, dataclasses.replace(plan, steps=4))
    with pytest.raises(InputError, match=r"--task.*one of 'digits, mlp', 'digits, vit'"):
        lte_report.plan(tasks=["digits"])


def test_a_setting_whose_weights_overflow_at_a_merge_diverged_and_the_others_go_on():
    """SGD at four times its rate: finite at every step of this seed, infinite in a merged W."""
    (setting,) = (one for one in SETTINGS if one.name == "with sgd")
    found = lte.run(setting, "digits, mlp", 4.0, 4, {"steps": 480, "limit": None})
    assert found.accuracy == 0.0
    assert found.effective_rank is None
