"""The heads over MPI ranks: the only module that imports mpi4py.

Shapes: rows (own heads, n); gathered (heads, n).

One Allgather of factors per merge, into the same array in head order on every rank. A rank that
raises or leaves early takes the whole job down, naming itself and its step; a launcher whose
processes do not see each other is refused.  [LTE-9]
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np

from loko_ref import interrupt
from loko_ref.arrays import Array, asarray, to_host
from loko_ref.errors import (
    BackendError,
    InputError,
    MissingExtraError,
    MissingLibraryError,
    NumericalError,
)
from loko_ref.lte.team import span
from loko_ref.lte.watch import Watch, sentry

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
"""Where launchers state how many processes they started, the surest first."""

_HERE = {"OMPI_COMM_WORLD_LOCAL_SIZE": "OMPI_COMM_WORLD_RANK", "MPI_LOCALNRANKS": "PMI_RANK"}
"""Where launchers state how many processes they started on this machine, and each one's rank."""

Result = TypeVar("Result")


def launched() -> int | None:
    """Return how many processes a launcher started; None where there is no launcher."""
    for name in _SIZES:
        if name == "SLURM_STEP_NUM_TASKS" and "SLURM_PROCID" not in os.environ:
            continue
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value) if name != "SLURM_STEP_NUM_TASKS" or int(value) > 1 else None
    return None


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _separate_worlds(size: int | None, seen: int, library: str) -> InputError:
    return InputError(
        "mpiexec",
        f"{size} processes, of which each sees {seen} rank{'s' if seen > 1 else ''} ({library})",
        "one world of all processes",
        "an mpiexec of another MPI than the one mpi4py loads: use the mpiexec in the Python "
        f"environment's own directory, {os.path.join(sys.prefix, 'bin')}",
    )


def _sentry(world: int | None) -> contextlib.AbstractContextManager[None]:
    for size, rank in _HERE.items():
        if world is not None and os.environ.get(size, "").isdigit() and rank in os.environ:
            return sentry(int(os.environ[size]), world, rank)
    return contextlib.nullcontext()


def connect() -> MpiTeam:
    """Join the world of ranks that the launcher started.

    Raises
    ------
    MissingExtraError
        If mpi4py is not installed; :class:`~loko_ref.errors.MissingLibraryError` where it is, and
        finds no MPI library.
    InputError
        If the launcher started several processes that do not see each other.
    """
    size = launched()
    if "OMPI_COMM_WORLD_SIZE" in os.environ and _installed("mpich") and not _installed("openmpi"):
        raise _separate_worlds(
            size, 1, "MPICH under Open MPI's launcher"
        )  # its MPI_Init would abort
    try:
        with _sentry(size):
            MPI = importlib.import_module("mpi4py.MPI")  # returns when all have joined
    except (ImportError, RuntimeError) as error:
        feature, name = "a run under mpiexec", getattr(error, "name", None) or ""
        if isinstance(error, ModuleNotFoundError) and name.split(".")[0] == "mpi4py":
            raise MissingExtraError(feature, "mpi4py", "mpi") from error
        failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
        library = "an MPI library"
        raise MissingLibraryError(feature, "mpi4py", "mpi", failure, library, "mpich") from error
    interrupt.joined()
    world = MPI.COMM_WORLD
    if size is not None and size != world.size:
        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip()
        raise _separate_worlds(size, world.size, library)
    return MpiTeam(MPI, world)


class MpiTeam:
    """A rank of the world; see :class:`loko_ref.lte.team.Team`."""

    def __init__(self, MPI: Any, comm: Any) -> None:
        self.MPI, self.comm = MPI, comm
        self.rank, self.size = int(comm.rank), int(comm.size)
        self.sent = 0
        self.step, self.doing = 0, "start"
        self.watch: Watch | None = None

    def meet(self) -> None:
        """Wait for all ranks."""
        self._wait(self.comm.Ibarrier())

    def _wait(self, request: Any) -> None:
        """Wait with a little sleep, in Python.

        A rank that spins takes others' cores away; one that waits inside MPI receives no interrupt.
        """
        tries = 0
        while not request.Test():
            tries += 1
            time.sleep(0 if tries < 64 else 1e-4)

    def gather(self, rows: Array, heads: int) -> Array:
        """All heads' rows, in head order: an Allgather, no sum, so no order of summation."""
        self.meet()
        host = np.ascontiguousarray(to_host(rows))
        n = host.shape[1]
        spans = [span(heads, rank, self.size) for rank in range(self.size)]
        counts = [(s.stop - s.start) * n for s in spans]
        starts = [s.start * n for s in spans]
        found = np.empty((heads, n), host.dtype)
        kind = self.MPI.FLOAT if host.dtype == np.float32 else self.MPI.DOUBLE
        self._wait(self.comm.Iallgatherv([host, kind], [found, counts, starts, kind]))
        self.sent += found.nbytes
        return asarray(found, rows)

    def collect(self, item: Any) -> list[Any]:
        """Small host objects of all ranks, in rank order, on every rank."""
        self.meet()
        own = np.frombuffer(pickle.dumps(item), np.uint8)
        size = np.array([own.size], np.int64)
        sizes = np.empty(self.size, np.int64)
        self._wait(self.comm.Iallgather([size, self.MPI.INT64_T], [sizes, self.MPI.INT64_T]))
        ends = np.cumsum(sizes)
        every, kind = np.empty(int(ends[-1]), np.uint8), self.MPI.BYTE
        counts, starts = sizes.tolist(), (ends - sizes).tolist()
        self._wait(self.comm.Iallgatherv([own, kind], [every, counts, starts, kind]))
        return [pickle.loads(every[a:b].tobytes()) for a, b in zip(starts, ends, strict=True)]

    def log(self, step: int, doing: str) -> None:
        """Note the step at hand where it outlives this process."""
        self.step, self.doing = step, doing
        if self.watch is not None:
            self.watch.note(f"step {step} ({doing})")

    def begin_watch(self) -> None:
        """Start the report of every rank's last step, printed if the job dies."""
        self.watch = Watch(self.rank, self.size, self.comm.bcast)

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do what every rank does alike at the start; if it fails anywhere, all stop together.

        Raises
        ------
        SystemExit
            With code 2, after rank 0 has printed what is wrong, and on which rank.
        """
        result, message = None, None
        try:
            result = work()
        except (BackendError, InputError, MissingExtraError, NumericalError, OSError) as error:
            message = str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # nothing foreseen: the others would wait for ever
            traceback.print_exc()
            self.fail(f"{type(error).__name__}: {error}")
        found = self.collect(message)
        if any(text is not None for text in found):
            if self.rank == 0:
                rank, text = next((k, t) for k, t in enumerate(found) if t is not None)
                same = all(t == text for t in found)
                where = "" if same else f"rank {rank}: "
                print(f"loko-ref: {where}{text}", file=sys.stderr, flush=True)
            self.leave(2)
        return result  # type: ignore[return-value]

    def guard(self, work: Callable[[], Result]) -> Result:
        """Do the work; whatever ends it early on this rank ends the job, with rank and step."""
        try:
            return work()
        except KeyboardInterrupt:  # of every rank: the process ends where it is answered
            if self.watch is not None:
                self.watch.done(wait=False)
            raise
        except BaseException as error:  # also SystemExit(0): the others would wait for ever
            if isinstance(error, SystemExit):
                what = f"left early with exit code {error.code}"
            else:
                what = f"{type(error).__name__}: {interrupt.after(error)}"
                if not isinstance(error, InputError | NumericalError):
                    traceback.print_exc()
            self.fail(what)

    def fail(self, what: str) -> NoReturn:
        """Report what happened on which rank at which step, and end the whole job.

        Also through the watcher: what a rank prints last, a launcher can lose.
        """
        if self.watch is not None:
            self.watch.note(f"step {self.step} ({self.doing}): {what}")
        print(
            f"loko-ref: rank {self.rank} of {self.size}, step {self.step} ({self.doing}): {what}",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        self.comm.Abort(1)
        os._exit(1)  # Abort may return

    def leave(self, code: int) -> NoReturn:
        """End together with all other ranks."""
        if self.watch is not None:
            self.watch.done()
        sys.stdout.flush()
        self.MPI.Finalize()
        raise SystemExit(code)

    def finish(self) -> None:
        """Part from the other ranks: what follows is one rank's own."""
        self.meet()
        if self.watch is not None:
            self.watch.done()
            self.watch = None
        self.MPI.Finalize()
