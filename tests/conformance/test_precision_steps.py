"""LoKO's steps and runs with a precision of low rank, or of blocks, as the catalogue has them."""

from pathlib import Path

import numpy as np
import pytest

from loko_ref.conformance.assessment.fresh import fresh
from loko_ref.conformance.cases.model import blocks_of
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.implementations.recording import read
from loko_ref.conformance.judge.answer import check as formed
from loko_ref.conformance.judge.hook import started
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import NOTHING, as_implementation
from loko_ref.conformance.teacher_forcing import steps_of
from loko_ref.conformance.user_inputs import read_case, save_case, user_case
from loko_ref.errors import InputError
from loko_ref.properties import check as hold

CASES = [
    c
    for c in all_cases()
    if c.operation.name.startswith("loko.") and c.options["covariance"] in ("lowrank", "block")
]
MINE = Path(__file__).parents[2] / "examples" / "my_loko.py"
RIGHT = as_implementation(NOTHING)


def case_of(key):
    (case,) = select(key)
    return case


def answer(case):
    return dict(RIGHT[case.operation.name](**case.inputs(), **case.options))


def wrong(case, outputs):
    check = judge(case, formed(outputs, case))
    return check.status, [(d.quantity, d.index[0]) for d in check.divergences]


def factor(WW, columns):
    """Return a factor of W W', its columns turned."""
    sizes, V = np.linalg.eigh(WW.astype(float))
    W = (V * np.sqrt(np.maximum(sizes, 0)))[..., -columns:]
    turn = np.linalg.qr(np.random.default_rng(columns).normal(size=(columns, columns)))[0]
    return (W @ turn).astype(WW.dtype)


def turned(case):
    out = answer(case)
    if "WW" not in out:
        return out
    WW = out.pop("WW")
    W = [factor(one, case.inputs()["W"].shape[1]) for one in np.atleast_3d(WW.T).T]
    return out | {"W": np.stack(W) if WW.ndim == 3 else W[0]}


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_factor_in_place_of_its_product_is_right(case):
    assert wrong(case, turned(case)) == ("passed", [])


@pytest.mark.parametrize("name", ["U", "WW"])
def test_a_run_is_judged_step_by_step_from_the_precision_that_came(name):
    case = case_of("loko.run/lowrank-run/float64")
    out = answer(case)
    first = {k: a for k, a in case.inputs().items() if k not in ("x", "y")}
    state = started(
        first, {k: out[k][1] for k in ("theta", "U", "WW")} | {name: 1.01 * out[name][1]}
    )
    rest = RIGHT["loko.run"](
        **state, x=case.inputs()["x"][2:], y=case.inputs()["y"][2:], **case.options
    )
    off = {k: np.concatenate([a[:2], rest[k]]) for k, a in out.items()}
    off[name][1] *= 1.01
    assert wrong(case, off) == ("failed", [(name, 1)])
    off[name][3] *= 1.01
    assert wrong(case, off)[1][0] == (name, 1)


@pytest.mark.verdict
def test_a_mistake_of_steps_is_named():
    def lost(**given):
        out = answer_of(given)
        return out | {"U": given["U"].copy()}

    def answer_of(given):
        return dict(RIGHT["loko.step"](**given))

    cases = [case_of(f"loko.step/{name}/float64") for name in ("lowrank-softmax", "block-implicit")]
    checks = run(Implementation(target="lost", functions={"loko.step": lost}), cases)
    assert {c.status for c in checks} == {"failed"}
    (named,) = {found[0].mutant.id for found in name_mistakes(checks).values()}
    assert named == "LOWRANK-CUT-LOST"


def test_no_column_is_the_variational_filter_and_every_column_the_dense_one():
    case = case_of("loko.step/lowrank-implicit/float64")
    x, n = case.inputs(), len(case.inputs()["theta"])
    W = x.pop("W")
    o = {k: a for k, a in case.options.items() if k != "covariance"}
    none = expected(user_case("loko.step", x | {"W": W[:, :0]}, covariance="lowrank", **o))
    U = x.pop("U")
    o |= {"diagonal": "variational"}
    one = expected(user_case("loko.step", x | {"p": 1 / U}, covariance="diagonal", **o))
    wide = np.concatenate([W, np.zeros((n, n))], axis=1)
    o |= {"diagonal": "decoupled"}
    P = np.linalg.inv(np.diag(U) + W @ W.T)
    every = expected(user_case("loko.step", x | {"U": U, "W": wide}, covariance="lowrank", **o))
    dense = expected(user_case("loko.step", x | {"P": (P + P.T) / 2}, covariance="dense", **o))
    for a, b in ((none, one), (every, dense)):
        for name in ("S", "K", "v", "theta"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(none["U"], 1 / one["p"])
    after = np.diag(every["U"]) + every["WW"]
    np.testing.assert_allclose(after @ dense["P"], np.eye(n), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blocks": [0, 1]}, "blocks: got 2 numbers; required n = 12"),
        ({"blocks": [0] * 12}, r"blocks: got 1 blocks of \[12\] parameters; required one per"),
        ({"U": np.ones((12, 12))}, "U: got an entry that is not 0 outside the blocks"),
        ({"U": np.ones(12)}, r"U: got shape \(12,\)"),
        ({"U": None}, "state.U: got None"),
        ({"W": np.ones((3, 2))}, r"W: got shape \(3, 2\)"),
        ({"covariance": "blocks"}, "covariance"),
    ],
    ids=str,
)
def test_what_is_no_state_of_a_precision_is_refused(change, match):
    case = case_of("loko.step/block-gaussian/float64")
    x, o = case.inputs(), case.options
    given = {k: a for k, a in {**x, **o, **change}.items() if a is not None}
    with pytest.raises(InputError, match=match):
        expected(user_case("loko.step", given))


def test_the_names_of_blocks_do_not_matter():
    case = case_of("loko.step/block-implicit/float64")
    other = [9.5 - block for block in case.options["blocks"]]
    again = expected(user_case("loko.step", case.inputs(), **{**case.options, "blocks": other}))
    assert all(np.array_equal(a, again[name]) for name, a in expected(case).items())


def test_other_sizes_have_blocks_of_their_own():
    for name, kind in (("block-implicit", "unit"), ("block-gaussian", "tensor")):
        one = fresh(case_of(f"loko.step/{name}/float64"), 0)
        assert one.options["blocks"] == blocks_of(one.options["spec"], kind)
        assert one.operation.oracle(one.inputs, one.options)["U"].shape == one.inputs["U"].shape


def test_a_case_travels_in_a_file(tmp_path):
    case = case_of("loko.run/lowrank-run/float32")
    save_case(tmp_path / "c.json", "loko.run", {**case.inputs(), **case.options})
    again = read_case(tmp_path / "c.json")
    assert np.array_equal(expected(again)["WW"], expected(case)["WW"])
    assert [one.inputs()["W"].shape for one in steps_of(again)] == 4 * [(12, 2)]


def test_what_knows_no_precision_says_so(tmp_path):
    np.savez(tmp_path / "t.npz", **{"0/theta": np.ones(3), "0/p": np.ones(3), "0/z": np.ones(2)})
    with pytest.raises(InputError, match="a precision, whose U and W are in no recording"):
        read(tmp_path / "t.npz", ["covariance=lowrank"])
    case = case_of("loko.step/lowrank-softmax/float64")
    with pytest.raises(InputError, match="a precision, which is a step's"):
        hold("loko.step/gain", str(MINE), **case.inputs(), **case.options)
    case = case_of("loko.step/glm/float64")
    hold("loko.step/gain", str(MINE), **case.inputs(), **case.options)
