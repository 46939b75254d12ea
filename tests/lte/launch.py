"""mpiexec as a subprocess: always with a time-out, and ended with every process of the job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from processes import MARK, command_line, end_tree, new_mark, with_token

OTHER = "LOKO_REF_OTHER_MPI_PYTHON"
"""Names a Python of an environment with the other MPI family (loko-ref and mpi4py in it)."""


@dataclass(frozen=True)
class World:
    """A Python, the mpiexec beside it, and the flags that this mpiexec needs."""

    python: str
    mpiexec: str
    flags: tuple[str, ...]
    family: str


@cache
def world(which: str) -> World:
    """The environment at hand (``own``), or the one of the other family; skips where absent."""
    python = sys.executable if which == "own" else os.environ.get(OTHER, "")
    if not python:
        pytest.skip(f"no second MPI environment: set {OTHER} to its Python")
    # not resolved: a virtual environment's python is a link out of it
    mpiexec = Path(python).parent / "mpiexec"
    probe = subprocess.run([python, "-c", "import mpi4py"], capture_output=True, timeout=60)
    if probe.returncode or not mpiexec.exists():
        pytest.skip(f"no mpi4py, or no mpiexec, beside {python}: pip install '.[mpi]'")
    told = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=60).stdout
    hydra = "HYDRA" in told
    flags = () if hydra else ("--allow-run-as-root", "--oversubscribe")
    return World(python, str(mpiexec), flags, "mpich" if hydra else "openmpi")


def environment(**more: str) -> dict[str, str]:
    more |= {MARK: new_mark()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "COVERAGE"))}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | more


@dataclass
class Ended:
    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Job:
    """A job under way, and the mark that its processes have."""

    process: subprocess.Popen[str]
    mark: str

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def end(self) -> None:
        """End all of it, whatever process group or session it is in, and wherever its parents."""
        end_tree(self.pid, self.mark)
        self.process.communicate(timeout=20)


def start(command: list[str], **more: str) -> Job:
    given = environment(**more)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=given,
        start_new_session=True,
    )
    return Job(process, given[MARK])


def finish(job: Job, timeout: float = 120) -> Ended:
    """Wait for the end; a job that hangs is killed whole, and is a failure."""
    begun = time.monotonic()
    try:
        out, err = job.process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end_tree(job.pid, job.mark)
        out, err = job.process.communicate(timeout=20)
        pytest.fail(f"no end within {timeout} s\n{out}\n{err}")
    except BaseException:
        job.end()
        raise
    return Ended(job.process.returncode, out, err, time.monotonic() - begun)


def mpi_command(w: World, ranks: int, *program: str) -> list[str]:
    return [w.mpiexec, *w.flags, "-n", str(ranks), w.python, "-m", "mpi4py", *program]


def assert_no_orphan(token: str, within: float = 5) -> None:
    until = time.monotonic() + within
    while left := with_token(token):
        if time.monotonic() > until:
            lines = [command_line(pid) for pid in left]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pytest.fail(f"left behind: {lines}")
        time.sleep(0.05)
