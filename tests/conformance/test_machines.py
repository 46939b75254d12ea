"""One verdict, one first quantity, one list of names: under every BLAS kernel and thread count."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sampling import sample

pytest.importorskip("threadpoolctl", reason="threadpoolctl (extra 'cli') is not installed")

from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.diagnose import naming
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.compare import compare
from loko_ref.conformance.judge.tolerance import expected, unit
from loko_ref.conformance.mistakes.registry import all_mutants, as_implementation

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
TARGETS = [EXAMPLES / "my_loko.py", EXAMPLES / "my_buggy_loko.py", HERE / "einsum_loko.py"]
MACHINES = [("SkylakeX", 1), ("Haswell", 2), ("Nehalem", 1)]

REPORT = """
import json, sys
from threadpoolctl import threadpool_info
from loko_ref.conformance.cases.registry import all_cases
from loko_ref.conformance.implementations.python import load
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.reports.document import as_json
from loko_ref.conformance.engine import run
import scipy.linalg
kernels = sorted({one.get("architecture", "") for one in threadpool_info()})
ids, found = set(json.loads(sys.stdin.read())), {}
cases = [case for case in all_cases() if case.id in ids]
for target in sys.argv[1:]:
    checks = run(load(target), cases)
    found[target] = as_json(target, checks, (), name_mistakes(checks))
print(json.dumps({"kernels": kernels, "reports": found}))
"""

NUMBERS = {"ratio", "worst_ratio", "expected", "got", "size"}
"""What may differ in its last digits."""


def plain(value):
    """A report without the numbers that are rounded."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in NUMBERS}
    return [plain(v) for v in value] if isinstance(value, list) else value


def report(kernel, threads, ids):
    """What verify says on a machine with that kernel; skips where the processor has it not."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPORT, *map(str, TARGETS)],
        input=json.dumps(ids),
        env={**os.environ, "OPENBLAS_CORETYPE": kernel, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    if done.returncode < 0:
        pytest.skip(f"this processor cannot run the kernel {kernel} (signal {-done.returncode})")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if answer["kernels"] != [kernel]:
        pytest.skip(f"asked for the kernel {kernel}, NumPy and SciPy run {answer['kernels']}")
    return {target: plain(one) for target, one in answer["reports"].items()}


def sampled():
    """A few cases, and what is known to be hard; every one in the long part."""
    some = [case.id for case in sample(all_cases(), 0.04)]
    some += ["model.jacobian/gelu/float64"]  # my_buggy_loko is wrong there, and named
    hard = [c.id for c in all_cases() if "high-leverage" in c.id or "nearly-singular" in c.id]
    return [*dict.fromkeys([*some, *hard])]


@pytest.mark.larger
@pytest.mark.timeout(1800)  # the long part takes each case six times over
def test_reports_do_not_depend_on_the_machine():
    ids = sampled()
    first, *others = (report(*machine, ids) for machine in MACHINES)
    for other in others:
        assert other == first
    right, buggy, einsum = (first[str(target)]["summary"] for target in TARGETS)
    assert right["failed"] == einsum["failed"] == 0
    assert buggy["failed"] > 0
    assert right["ran"] + right["unsupported"] == buggy["ran"] + buggy["unsupported"] == len(ids)


@pytest.mark.verdict
@pytest.mark.parametrize("tilt", [1 - 1e-12, 1.0, 1 + 1e-12, 1.02])
def test_of_equal_errors_the_first_is_shown(tilt):
    """S[2, 1] is as wrong as S[1, 2]; which of them is worse is a matter of rounding."""
    (case,) = select("kalman.diagonal_update/random/float64")
    S = np.array(expected(case)["S"])
    error = 1e6 * unit(case)["S"].size[1, 2]
    S[1, 2] += error
    S[2, 1] += error * tilt
    divergence, worst = compare(case, {"S": S})
    assert divergence.index == (1, 2)
    assert worst >= divergence.ratio > 1e4
    S[2, 1] += error  # twice as wrong is another matter
    assert compare(case, {"S": S})[0].index == (2, 1)


@pytest.mark.verdict
@pytest.mark.parametrize("seed", range(4))
def test_what_nothing_tells_apart_is_named_in_the_order_of_the_catalogue(seed, monkeypatch):
    """Whatever rounding makes of how near two mistakes come."""
    rng, within = np.random.default_rng(seed), naming.within

    def on_another_machine(*given):
        ratio = within(*given)
        return ratio * rng.uniform(0.2, 2.0) if ratio < 0.2 else ratio

    monkeypatch.setattr(naming, "within", on_another_machine)
    one = next(m for m in all_mutants() if m.id == "R-JITTER")
    target = Implementation(target="x", functions=as_implementation(one, one.example))
    named = naming.name_mistakes(run(target, select("kalman.dense_update", "float64")))
    orders = [[m.mutant.id for m in fits] for fits in named.values() if fits]
    assert orders
    assert orders == [["S-JITTER", "R-JITTER"]] * len(orders)  # R itself is no output
    assert all(fits[0].alike == ("R-JITTER",) for fits in named.values() if fits)
