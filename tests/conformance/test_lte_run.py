"""The operation ``lte.run`` repeats a run: its moments, its networks, what may be left out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sampling import sample

from loko_ref import lte
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.catalogue.registry import get
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.oracle import lte as lte_oracle
from loko_ref.errors import InputError
from loko_ref.network import model
from loko_ref.optimizers import SGD
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.lte import RUN

RUNS = select("lte.run", "float64")
DUE = (1, 3)  # merges after steps 2 and 4, from 0


def case(name):
    (found,) = select(f"lte.run/{name}/float64")
    return found


def test_outputs_are_in_the_order_of_the_catalogue():
    assert [o.name for o in get("lte.run").outputs] == [q.name for q in RUN if not q.hidden]


def test_every_choice_of_the_package_is_an_option():
    from dataclasses import fields

    from loko_ref.optimizers import AdaGrad, AdamW

    options = {o.name for o in get("lte.run").options}
    named = {f.name for c in (lte.LteConfig, SGD, AdaGrad, AdamW, lte.Loko) for f in fields(c)}
    # merging: a matter of rounding; init, seed: factors and redraws are inputs; p0: the input p
    # covariance, columns, blocks: a diagonal alone
    assert options - named == {"rates", "merge_at", "reset_at"}
    alone = {"covariance", "columns", "blocks"}
    assert named - options == {"merging", "init", "seed", "p0"} | alone


def test_every_mode_and_optimizer_has_a_case_and_its_arrays():
    seen = {(c.options["mode"], c.options["optimizer"]) for c in RUNS}
    optimizers = ("sgd", "adagrad", "adamw", "loko")
    assert seen == {(mode, o) for mode in ("lte", "mhlora") for o in optimizers}
    for c in RUNS:
        o, out = c.options, expected(c)
        n = out["theta"].shape[-1]
        slope = "Z" if o["optimizer"] == "loko" else "gradient"
        assert out[slope].shape[-1] == n
        state = {"loko": {"p"}, "sgd": {"momentum"} if o["momentum"] else set()}
        state |= {"adagrad": {"sum"}, "adamw": {"exp_avg", "exp_avg_sq"}}
        wanted = {"z", "loss", slope, "theta", "W"} | state[o["optimizer"]]
        if o["optimizer"] == "loko" and o["noise"] != "glm":
            wanted.add("R")
        if o["mode"] == "lte":
            wanted |= {f"{k}_step" for k in wanted - {"z", "loss", slope, "W"}}
            memory = {"shared": "merged", "copies": "copies"}[o["realisation"]]
            wanted |= {memory, "seen"}
            if o["reset"] != "none":
                wanted |= {f"{k}_merge" for k in ({"theta", "p", memory} & wanted)}
        if "evaluation" in c.inputs():
            wanted |= {"z_main", "z_now"} if o["mode"] == "lte" else {"z_now"}
            wanted |= {"z_first"} if c.recipe.name in ("evaluated", "transformer") else set()
        assert set(out) == wanted, c.id


@pytest.mark.parametrize("name", ["reset-AB", "loko-prior", "copies-reset-AB"])
def test_each_moment_is_shown(name):
    out, inputs = expected(case(name)), case(name).inputs()
    for t in range(5):
        moved = not np.array_equal(out["theta_merge"][t], out["theta"][t])
        assert moved == (t in DUE)  # a reset
        np.testing.assert_array_equal(out["theta_merge"][t], out["theta_step"][t])  # no replicas
    if "redraws" in inputs:
        A = inputs["redraws"]["0.A"]
        size = A[0, 0].size
        for k, t in enumerate(DUE):
            np.testing.assert_array_equal(out["theta"][t][:, :size], A[k].reshape(3, size))
    memory = "copies" if "copies" in out else "merged"
    for t in DUE:
        assert np.abs(out[f"{memory}_merge"][t] - out[memory][t]).max() > 1e-3
    if memory == "merged":
        assert not out["merged"].any()
        np.testing.assert_array_equal(out["merged_merge"][1], out["theta_step"][1])


def test_copies_see_what_a_shared_weight_and_its_correction_show():
    one = case("copies-reset-AB")
    shared = one.operation.oracle(one.inputs(), {**one.options, "realisation": "shared"})
    copies = expected(one)
    for name in ("theta", "W", "seen", "loss"):
        np.testing.assert_allclose(copies[name], shared[name], rtol=1e-10, atol=1e-12)


def test_evaluated_networks_are_one_after_a_merge_and_the_heads_mean_between():
    for name in ("evaluated", "evaluated-reset"):
        out = expected(case(name))
        due = {"evaluated": (2,), "evaluated-reset": DUE}[name]
        for t in range(5):
            far = np.abs(out["z_main"][t] - out["z_now"][t]).max()
            assert (far < 1e-13) == (t in due)
    one = case("evaluated")
    out, x = expected(one), one.inputs()
    W, b = out["seen"].mean(axis=1)[0], x["weights"]  # both linears, after step 1
    h = np.tanh(x["evaluation"] @ W[:30].reshape(6, 5).T + b["0.b"])
    # the second linear is a replica: its bias is the mean of the copies, last in theta
    z = h @ W[30:].reshape(3, 6).T + out["theta"][0][:, -3:].mean(axis=0)
    np.testing.assert_allclose(out["z_now"][0], z, rtol=1e-12)


def test_what_is_not_returned_is_not_judged():
    few = ("theta", "W")
    for name in ("reset-B", "loko", "evaluated"):
        one = case(name)
        wanted = expected(one)

        def mine(wanted=wanted, **keywords):
            return {k: wanted[k] for k in few}

        (check,) = run(Implementation(target="few", functions={"lte.run": mine}), [one])
        assert check.status == "passed"
        assert set(check.quantities) == set(few)


def test_an_implementation_without_the_new_options_still_runs_the_old_cases():
    def mine(x, y, weights, factors, spec, heads, merge_every, optimizer, lr, mode, redraws=None):
        (one,) = [c for c in RUNS if c.inputs()["x"].tobytes() == x.tobytes()]
        return {"theta": expected(one)["theta"]}

    checks = run(Implementation(target="old", functions={"lte.run": mine}), RUNS)
    status = {c.case.recipe.name: c.status for c in checks}
    assert status["sgd"] == status["replica"] == status["mhlora"] == "passed"
    assert status["copies"] == status["loko-shrink"] == status["evaluated"] == "unsupported"
    assert status["reset-at"] == "unsupported"
    assert "failed" not in status.values()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_another_right_route_is_not_accused(dtype):
    """Telescoped merges, the other realisation, the dtype's own arithmetic: far within."""

    def other(**given):
        taken = {i.name for i in get("lte.run").inputs}
        inputs = {k: v for k, v in given.items() if k in taken}
        options = {k: v for k, v in given.items() if k not in taken}
        if options["mode"] == "lte":
            swap = {"shared": "copies", "copies": "shared"}
            options["realisation"] = swap[options["realisation"]]
        out = lte_oracle.run(inputs, options, merging="telescoped")
        return {k: v for k, v in out.items() if k.split("_")[0] not in ("merged", "copies")}

    cases = sample(select("lte.run", dtype), 0.2)
    checks = run(Implementation(target="other", functions={"lte.run": other}), cases)
    assert {c.status for c in checks} == {"passed"}
    assert max(c.worst for c in checks) < 0.25


def test_options_are_json():
    for c in RUNS:
        assert json.loads(json.dumps(c.options)) == c.options


# ------------------------------------------------------------------- the Python function under it


def _problem(**changes):
    one = case("sgd")
    x = one.inputs()
    config = lte.LteConfig(
        spec=one.options["spec"], heads=3, merge_every=2, optimizer=SGD(lr=0.1), **changes
    )
    state = lte.init(config, weights=x["weights"], factors=x["factors"])
    return config, state, list(zip(x["x"], x["y"], strict=True))


def test_a_rate_for_every_step_is_a_step_with_that_rate():
    config, state, data = _problem()
    rates = [0.3, 0.0, 0.2, 0.05, 0.1]
    end, trace = lte.run(config, state, data, rates=rates)
    steps = [e.state.theta for e in trace.events if e.kind == "step"]
    merged = [e.state.theta for e in trace.events if e.kind == "merge"]
    assert np.array_equal(steps[1], steps[0])
    assert len(merged) == 2
    for (x, y), rate in zip(data, rates, strict=True):
        own = replace(config, optimizer=SGD(lr=rate))
        state, _ = lte.step(own, state, x, y)
        if state.step % 2 == 0:
            state = lte.merge(own, state)
    np.testing.assert_array_equal(end.theta, state.theta)


def test_merges_come_where_they_are_asked_for():
    config, state, data = _problem()
    _, trace = lte.run(config, state, data, merge_at=[1, 4])
    kinds = "".join(e.kind[0] for e in trace.events)
    assert kinds == "smsssms"
    _, trace = lte.run(config, state, data, merge_at=[], close=True)
    assert "".join(e.kind[0] for e in trace.events) == "sssssm"
    _, trace = lte.run(config, state, data, merge_at=[5], close=True)
    assert "".join(e.kind[0] for e in trace.events) == "sssssm"


def test_resets_come_after_the_merges_that_are_named():
    config, state, data = _problem(reset="B")
    _, trace = lte.run(config, state, data, reset_at=[4])
    assert "".join(e.kind[0] for e in trace.events) == "ssmssmrs"
    kept = trace.events[2].state
    assert kept.merged is not None  # a merge without a reset is remembered
    _, trace = lte.run(config, state, data, merge_at=[1, 3, 5], reset_at=[1, 5])
    assert "".join(e.kind[0] for e in trace.events) == "smrssmssmr"


@pytest.mark.parametrize("name", ["reset-B", "copies-reset-AB", "loko-prior"])
def test_resets_at_some_merges_are_repeated_by_both_routes(name):
    one = case(name)
    options = {**one.options, "reset_at": [4]}  # merges after steps 2 and 4
    theirs = one.operation.plain(one.inputs(), options, FORMULA_TABLE, lambda name, value: value)
    ours = one.operation.oracle(one.inputs(), options)
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, rtol=1e-9, atol=1e-12, err_msg=key)
    every = expected(one)["theta"]
    np.testing.assert_allclose(ours["theta"][0], every[0], rtol=1e-12)
    assert np.abs(ours["theta"][1] - every[1]).max() > 1e-3


def test_batches_may_change_their_size_where_no_R_has_it():
    config, state, data = _problem()
    (x, y), *rest = data
    ragged = [(x[:3], y[:3]), *rest]
    _, trace = lte.run(config, state, ragged)
    assert [e.record.z.shape[1] for e in trace.events if e.record] == [1, 2, 2, 2, 2]
    filters = replace(config, optimizer=lte.Loko(observation="softmax", noise="ema_innovation"))
    with pytest.raises(InputError, match=r"state\.R.*a batch of another size"):
        lte.run(filters, lte.init(filters, batch=2), ragged)


def test_schedules_that_make_no_sense_are_refused():
    config, state, data = _problem()
    with pytest.raises(InputError, match=r"reset_at: got .*None with reset='none'"):
        lte.run(config, state, data, reset_at=[2])
    resets = replace(config, reset="B")
    with pytest.raises(InputError, match="reset_at: got 3; required the step of a merge"):
        lte.run(resets, state, data, reset_at=[2, 3])
    with pytest.raises(InputError, match="2 rates, none for step 3"):
        lte.run(config, state, data, rates=[0.1, 0.1])
    one = replace(config, mode="mhlora")
    with pytest.raises(InputError, match="mhlora never merges"):
        lte.run(one, lte.init(one), data, merge_at=[1])
    filters = replace(config, optimizer=lte.Loko())
    with pytest.raises(InputError, match="LoKO has no learning rate"):
        lte.run(filters, lte.init(filters, batch=2), data, rates=[0.1] * 5)


def test_the_heads_filter_has_the_defaults_of_the_plain_one():
    from dataclasses import fields

    from loko_ref.loko import LokoConfig

    plain = {f.name: f.default for f in fields(LokoConfig)}
    differ = {f.name: f.default for f in fields(lte.Loko) if plain[f.name] != f.default}
    assert differ == {"p0": 0.01}  # measured: [LTE-10]


def test_merged_model_is_the_network_evaluated():
    config, state, data = _problem()
    end, _ = lte.run(config, state, data)
    x = case("evaluated").inputs()["evaluation"]
    seen = case("evaluated").operation.oracle(
        {**case("sgd").inputs(), "evaluation": x}, case("sgd").options
    )
    z, _ = model.forward(lte.merged_model(config, end.weights), x)
    np.testing.assert_allclose(seen["z_main"][-1], z, rtol=1e-12)
