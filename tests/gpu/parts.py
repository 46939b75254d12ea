"""The parts that are right or wrong: states, failures, LoKO, baselines, LTE, the `gpu` tests."""

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import table
import test_lte_device as on_device

from gpu import ROOT
from loko_ref import arrays, loko, lte, optimizers
from loko_ref.errors import NumericalError
from loko_ref.kalman.dense import FORMS
from loko_ref.kalman.diagonal import DIAGONALS
from loko_ref.kalman.implicit import SOLVES
from loko_ref.kalman.lowrank import BLOCKS
from loko_ref.kalman.observation import OBSERVATIONS
from loko_ref.loko import COVARIANCES, Batch, LokoConfig
from loko_ref.network.jacobian import gradient
from loko_ref.network.model import mlp_spec, pack

ROUNDING = {"float64": 1e-11, "float32": 1e-3}
"""Two BLAS libraries after a few steps: 1e4 to 5e4 roundoffs of the largest entry."""


STATES = {
    "not installed": "import sys; sys.modules['cupy'] = None",
    "import fails": "import sys; sys.path.insert(0, BROKEN)",
    "no device": "FAKE(device.CUDARuntimeError('cudaErrorNoDevice'))",
    "smoke run fails": "FAKE(1); import cupy; cupy.linalg.cholesky = lambda a: a",
    "works": "FAKE(1)",
}
ASKED = """
import pytest, gpu, device
FAKE = lambda devices: {fake}
BROKEN = {broken!r}
{change}
from loko_ref import arrays
from loko_ref.errors import BackendError
try:
    a = arrays.get_backend("cupy").asarray([1.0, 2.0])
    print("works" if float(a.sum()) == 3.0 else "a wrong sum")
except BackendError as error:
    print(error.state)
"""


def states(part):
    """Whether each of the four states of CuPy is told apart, and whether it works as it is."""
    with tempfile.TemporaryDirectory() as broken:
        (Path(broken) / "cupy").mkdir()
        (Path(broken) / "cupy" / "__init__.py").write_text("raise OSError('libcublas.so: gone')")
        for state, change in STATES.items():
            fake = "device.fake_cupy(pytest.MonkeyPatch(), devices)" if part.emulated else "None"
            code = ASKED.format(fake=fake, broken=broken, change=change)
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if state == "no device" else {}
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, **hidden, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                timeout=30,
            )
            part.figure(
                f"state '{state}'", done.stdout.strip() or done.stderr[-300:], f'== "{state}"'
            )


def failure(part):
    """Whether a failed factorisation raises as on the host, and harms nothing after it."""
    bad = {
        "indefinite": np.array([[1.0, 2.0], [2.0, 1.0]]),
        "singular": np.ones((3, 3)),
        "not finite": np.full((2, 2), np.nan),
    }
    for name, S in bad.items():
        found = []
        for a in (S, part.lib.asarray(S)):
            try:
                arrays.cholesky(a, "S")
                found.append("no error")
            except NumericalError as error:
                found.append((error.cause.split(":")[0], error.eigenvalue))
        (cause, value), there = found
        same = there != "no error" and there[0] == cause
        near = same and (value is there[1] or abs(value - there[1]) <= 1e-14)
        part.figure(
            f"{name} S", str(there) if not near else "as on the host", '== "as on the host"'
        )
    config = part.to_device(LokoConfig(model=table.mlp(), observation="softmax", p0=1e-3))
    state = loko.init(config)
    wrong = loko.LokoState(theta=state.theta, p=state.p, R=-state.R)
    batch = part.to_device(Batch(x=np.ones((1, 3)), y=np.array([1])))
    try:
        loko.step(wrong, batch, config)
        told = "no error"
    except NumericalError as error:
        told = str(error)
    part.figure("a step with an indefinite R names itself", "step 0" in told, "== true")
    after, _ = loko.step(state, batch, config)
    good = bool(part.lib.xp.isfinite(after.theta).all())
    part.figure("the next step is right again", good, "== true")


def variants():
    """(name, options) of every covariance, with every diagonal and form that it has."""
    more = {
        "diagonal": [{"diagonal": kind} for kind in DIAGONALS],
        "dense": [{"form": form} for form in FORMS],
        "block": [{"blocks": blocks} for blocks in BLOCKS],
    }
    for covariance in COVARIANCES:
        for options in more.get(covariance, [{}]):
            name = ", ".join([covariance, *options.values()])
            yield name, {"covariance": covariance, **options}


def covariances(part):
    """LoKO with every covariance and observation, three steps on both."""
    width = 6 if part.emulated else 32
    rng = np.random.default_rng(3)
    spec = mlp_spec([width, width, 4], "gelu", {"r": 2, "alpha": 4.0})
    for dtype, limit in ROUNDING.items():
        net = table.trained(spec)
        net = type(net)(spec=spec, weights={k: a.astype(dtype) for k, a in net.weights.items()})
        xs = [rng.standard_normal((2, width)).astype(dtype) for _ in range(3)]
        for name, options in variants():
            for observation in OBSERVATIONS:
                if options.get("form") == "sequential" and observation in ("softmax", "logits"):
                    continue  # it asks for a diagonal R, which theirs is not
                solves = SOLVES if observation == "glm" else ("linear",)
                rows = observation == "gaussian"
                ys = [x[:, :4] if rows else rng.integers(0, 4, 2) for x in xs]
                batches = [Batch(x=x, y=y) for x, y in zip(xs, ys, strict=True)]
                for solve in solves:
                    chosen = {**options, "observation": observation, "solve": solve}
                    config = LokoConfig(model=net, p0=0.02, lam=0.99, q=1e-4, **chosen)
                    inputs = {"config": config, "batches": batches}
                    title = f"LoKO, {name}, {observation}, {solve}, {dtype}"
                    part.on_both(title, _run, inputs, limit)


def _run(inputs):
    config = inputs["config"]
    state, records = loko.run(loko.init(config, batch=2), inputs["batches"], config)
    return {"state": table.determined(state, config), "z": [record.z for record in records]}


def baselines(part):
    """SGD, AdaGrad and AdamW, ten steps down a network's gradient on both."""
    rng = np.random.default_rng(4)
    width = 6 if part.emulated else 64
    net = table.trained(mlp_spec([width, width, 4], "tanh", {"r": 2, "alpha": 4.0}))
    inputs = {"net": net, "x": rng.standard_normal((8, width)), "dz": rng.standard_normal((8, 4))}
    for config in (
        optimizers.SGD(lr=0.01, momentum=0.9, nesterov=True),
        optimizers.AdaGrad(lr=0.01, weight_decay=0.01),
        optimizers.AdamW(lr=0.01),
    ):

        def descend(inputs, config=config):
            net = inputs["net"]
            state = optimizers.init(pack(net), config)
            for _ in range(10):
                now = table.unpack(net, state.theta)
                state = optimizers.step(state, gradient(now, inputs["x"], inputs["dz"]), config)
            return state

        part.on_both(type(config).__name__, descend, inputs, ROUNDING["float64"])


def heads(part):
    """LTE in every mode with every optimizer: steps, merges and resets on both."""
    for kind in ("flat", "stack"):
        for case in on_device.CASES:
            for optimizer in on_device.OPTIMIZERS:
                config = on_device.make(kind, case, optimizer)

                def run(data, config=config):
                    there = not arrays.is_numpy(data[0][0])
                    begin = on_device.begin(config, part.lib) if there else on_device.start(config)
                    state, trace = lte.run(config, begin, data, close=True)
                    z = [e.record.z for e in trace.events if e.record is not None]
                    return {"state": on_device.everything(config, state), "z": z}

                data = on_device.batches(config, 5)
                part.on_both(f"LTE, {kind}, {case}, {optimizer}", run, data, 1e-8)


def tests(part):
    """The tests marked ``gpu``, by pytest; what was skipped or not reached was not measured."""
    marked = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"marks=pytest\.mark\.gpu\b|@pytest\.mark\.gpu\b", file.read_text("utf-8"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        words = ["-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
        words += ["-W", "ignore::pytest.PytestUnknownMarkWarning", f"--junitxml={report}"]
        words += ["-q", "-m", "gpu", "-p", "gpu.plugin"] + ([] if part.emulated else ["--long"])
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words, *marked],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "GPU_EMULATED": str(int(part.emulated)),
            },
            capture_output=True,
            text=True,
            timeout=120,  # the plugin stops before
        )
        if not report.exists():
            raise AssertionError(f"pytest ended with {done.returncode}: {done.stdout[-1000:]}")
        cases = list(ET.parse(report).getroot().iter("testcase"))
    wrong = [c.get("name") for c in cases if {"failure", "error"} & {child.tag for child in c}]
    skipped = [c.find("skipped").get("message") for c in cases if c.find("skipped") is not None]
    part.figure("gpu tests that ran", len(cases) - len(skipped), ">= 1")
    part.figure("gpu tests that failed", wrong, "== []")
    for reason in sorted(set(skipped)):
        part.figure("gpu tests skipped", skipped.count(reason), unmeasured=reason)
    late = re.search(r"(\d+) tests were not reached", done.stdout)
    if late:
        part.figure("gpu tests not reached", int(late[1]), unmeasured="the time was up")
