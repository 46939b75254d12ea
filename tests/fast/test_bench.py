"""The clock and its command: what it prints, not how fast it is."""

import ast
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from loko_ref import loko
from loko_ref.errors import InputError
from loko_ref.fast import bench, prepare
from loko_ref.fast.network import Network

SIZES = {"mlp_b1": (2344, 10), "mlp_b32": (2344, 320), "tf_small": (16384, 10)}


@pytest.mark.parametrize("name", SIZES)
def test_problems_are_as_stated_and_both_routes_agree(name):
    config, state, batch = bench.problem(name, "float64")
    assert (config.model.n, state.R.shape[0]) == SIZES[name]
    expected, _ = loko.step(state, batch, config)
    got, _ = prepare(config).step(state, batch)
    for key in ("theta", "p", "R"):
        a, b = getattr(expected, key), getattr(got, key)
        assert np.abs(a - b).max() <= 1e-10 * np.abs(a).max(), key


def test_sizes_of_the_large_problems():
    """Shapes only: nothing of this size is drawn in a test."""
    for name, outputs in (("roberta", 2), ("vit", 10), ("vit_100", 100)):
        spec = bench._spec(name, 8)
        from loko_ref.network.spec import linears, width_out

        sites = [layer for layer in linears(spec) if layer.get("lora")]
        assert len(sites) == 24
        assert sum(8 * (k["in"] + k["out"]) for k in sites) == 294912
        assert width_out(spec) == outputs


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("route", bench.ROUTES)
def test_measure(dtype, route):
    row = bench.measure("mlp_b1", dtype, min_time=0.01, route=route)
    assert json.loads(json.dumps(row)) == row
    assert row.keys() >= {"config", "dtype", "n", "m", "median_ms", "step_peak_mb"}
    assert 0 < row["min_ms"] <= row["median_ms"] <= row["p90_ms"]
    assert row["step_peak_mb"] >= 0


def test_memory_of_a_step():
    """Going back, at most twice the cotangents of the widest layer are alive beside what is kept.

    Attention's dv, dk and the scores' cotangents would make it 2.8 times, if none were let go.
    """
    config, state, batch = bench.problem("tf_small", "float64")
    network = Network(config.model)
    z, now = network.forward(state.theta, batch.x)
    seeds = np.broadcast_to(np.eye(9, 10), (1, 9, 10))
    network.backward(seeds, now)  # from here on H is there
    tracemalloc.start()
    network.backward(seeds, now)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    widest = 9 * 64 * 512 * z.itemsize  # k t ff
    assert peak <= 2 * widest


def test_refused():
    for arguments in (("mlp", "float64"), ("mlp_b1", "float16")):
        with pytest.raises(InputError):
            bench.problem(*arguments)
    with pytest.raises(InputError):
        bench.measure("mlp_b1", "float64", min_time=0.0)


def test_command():
    testing = pytest.importorskip("typer.testing", reason="typer is not installed (extra 'cli')")
    from loko_ref.cli.app import app

    out = testing.CliRunner().invoke(app, ["bench", "mlp_b1", "float32", "--min-time", "0.01"])
    assert out.exit_code == 0, out.output
    row = json.loads(out.stdout.strip().splitlines()[-1])
    assert row["config"] == "mlp_b1"
    assert row["median_ms"] > 0


BENCHMARKS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


def peers(file):
    """Of the peers that need not be installed, those that a file imports as it loads."""
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    return {"torch", "jax", "transformers", "peft"} & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("needs", [(), ("torch",)], ids=["alone", "torch"])
def test_the_benchmarks_outside_the_default_run_still_load(needs):
    """Everything that they import is there; nothing of them is run."""
    assert all(peers(file) in (set(), {"torch"}) for file in BENCHMARKS)
    files = [file for file in BENCHMARKS if peers(file) == set(needs)]
    assert files
    for name in needs:
        pytest.importorskip(name, reason=f"{name} is not installed (extra 'interop')")
    load = "import runpy, sys; [runpy.run_path(f, run_name='loaded') for f in sys.argv[1:]]"
    command = [sys.executable, "-c", load, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
