"""Low-rank and block precisions in `train` and in LTE's heads; checkpoints of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command import loko_ref

from loko_ref import lte
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.network.model import mlp_spec


def run(*words):
    result = loko_ref(*words)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.sampled(1)
@pytest.mark.parametrize("route", ["readable", "fast"])
@pytest.mark.parametrize(
    "variant",
    ["covariance=lowrank,columns=3,solve=implicit", "covariance=block,columns=2,lam=0.99,q=1e-3"],
)
def test_a_checkpoint_holds_the_precision(tmp_path, variant, route):
    """A resumed run is the same run, and one of other columns is not."""
    file = tmp_path / "c.npz"
    common = ["train", "--data", "iris", "--seed", "0", "--epochs", "1", "--route", route]
    named = [*common, "--optimizer", f"loko,{variant}"]
    run(*named, "--checkpoint", file, "--json", tmp_path / "a")
    run(*named, "--resume", file, "--json", tmp_path / "b")
    first, second = (json.loads((tmp_path / k).read_text())["runs"][0] for k in "ab")
    assert first["test_accuracy"] == second["test_accuracy"]
    assert {"0/U", "0/W"} <= set(np.load(file))
    other = variant.replace("columns=", "columns=1")
    result = loko_ref(*common, "--optimizer", f"loko,{other}", "--resume", file)
    assert result.returncode == 2
    assert "columns" in result.stderr


def heads(covariance="lowrank", **options):
    spec = mlp_spec([3, 5, 2], "tanh", {"r": 2, "alpha": 4.0})
    loko = lte.Loko(covariance=covariance, p0=0.1, **options)
    return lte.LteConfig(spec=spec, heads=2, merge_every=2, optimizer=loko)


def ran(config, steps=5):
    rng = np.random.default_rng(0)
    state = lte.init(config, batch=2)
    for _ in range(steps):
        x, y = rng.normal(size=(4, 3)), rng.integers(0, 2, 4)
        state, _ = lte.step(config, state, x, y)
        state = lte.merge(config, state) if state.step % 2 == 0 else state
    return state


def test_heads_without_a_column_are_the_variational_ones():
    found, right = ran(heads(columns=0)), ran(heads("diagonal", diagonal="variational"))
    np.testing.assert_allclose(found.theta, right.theta, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(1 / found.slots["U"], right.slots["p"], rtol=1e-9)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("options", [{"columns": 2}, {"covariance": "block", "columns": 1}])
def test_heads_of_any_precision_run(options):
    state = ran(heads(**options, solve="implicit"))
    assert np.isfinite(state.theta).all()
    assert state.slots["W"].shape == (2, state.theta.shape[1], options["columns"])


def test_a_merge_that_changes_p_needs_variances():
    config = heads()
    with pytest.raises(InputError, match=r"filter_merge: got 'shrink' with covariance='lowrank'"):
        replace(config, filter_merge="shrink")


def test_a_description_has_later_options_only_where_they_are_chosen():
    """So that a checkpoint written before them is one of the same run."""
    usual = RunConfig(optimizer="loko").as_dict()["options"]
    assert not {"solve", "columns", "blocks"} & set(usual)
    chosen = {"covariance": "lowrank", "columns": 3, "solve": "implicit"}
    assert (
        chosen.items() <= RunConfig(optimizer="loko", options=chosen).as_dict()["options"].items()
    )
    again = RunConfig(**RunConfig(optimizer="loko", options=chosen).as_dict())
    assert again == RunConfig(optimizer="loko", options=chosen)
    assert "solve" not in heads("diagonal").as_json()["optimizer"]
    assert heads(columns=1).as_json()["optimizer"]["columns"] == 1
