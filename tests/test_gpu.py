"""The check on a GPU (``python -m tests.gpu``), on the stand-in; its verdicts and time-outs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu.__main__ import MACHINE, PARTS, run
from gpu.figures import Part, apart

ROOT = Path(__file__).parents[1]


@pytest.mark.larger
def test_every_part_runs_on_the_stand_in(tmp_path):
    words = [sys.executable, "-m", "tests.gpu", str(tmp_path), "--emulate"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, (done.stdout, report)
    assert report["emulated"]
    assert "stand-in" in report["machine"]["gpu"]
    assert list(report["parts"]) == list(PARTS)
    for name, part in report["parts"].items():
        assert part["status"] == "finished"
        assert {"met", "not measured"} & {f["verdict"] for f in part["figures"]}, name
        assert all(f.get("reason") for f in part["figures"] if f["verdict"] == "not measured")


def test_the_time_outs_leave_six_minutes():
    assert MACHINE + sum(limit for _, limit in PARTS.values()) <= 350  # 10 s to start and end them


def test_a_part_that_hangs_is_stopped():
    row, figures = run("states", 0.05, True)
    assert (row["status"], figures) == ("stopped", [])


@pytest.mark.larger
def test_a_part_that_fails_is_reported_and_no_gpu_is_unusable(tmp_path, monkeypatch):
    row, _ = run("no such part", 60, True)
    assert row["status"] == "failed"
    assert "no such part" in row["error"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [sys.executable, "-m", "tests.gpu", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("backend 'cupy': no")
    assert "Traceback" not in done.stderr
    assert not json.loads((tmp_path / "gpu.json").read_text())["met"]


def test_verdicts():
    part = Part(emulated=False)
    part.figure("ratio", 1.0, "<= 1.0")
    part.figure("ratio", 1.1, "<= 1.0")
    part.figure("state", "no device", '== "works"')
    part.figure("ms", 3.0)
    part.figure("ratio", None, "<= 1.0", unmeasured="no torch")
    verdicts = ["met", "missed", "missed", "reported", "not measured"]
    assert [row["verdict"] for row in part.figures] == verdicts


def test_what_is_not_finite_is_apart():
    assert apart(np.ones(2), np.array([1.0, np.nan])) == float("inf")
    assert apart(np.full(2, 4.0), np.array([4.0, 5.0])) == 0.25
