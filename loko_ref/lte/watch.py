"""The last step that each rank logged, shown when a job dies.

Each rank keeps one line in a file of its own, ``rank-0003``, in a directory that rank 0 makes; what
was written stays when the process is killed. Rank 0 starts a watcher beside it that waits on a
pipe: if the pipe closes before rank 0 has reported its end, rank 0 is gone (killed, or taken down
with the job by the launcher), and the watcher prints every rank's line. Then, or when all is well,
it removes the directory and ends.

MPICH's launcher drops what it has not forwarded yet when a job dies, so the watcher writes to the
launcher's own stderr where that runs on the same machine (Linux: through /proc). On other machines,
or where that cannot be opened, it writes to rank 0's stderr.

Before that, while a rank waits for the others to join, a sentry looks after it. A launcher can miss
the end of a rank that has not joined yet (MPICH: whatever its exit code; Open MPI: with code 0),
and the others would wait for ever. The sentry looks for the processes that the launcher began on
its machine (Linux: through /proc); if one is missing for two seconds, it prints so and kills the
rank that waits, which ends the job.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_WATCHER = """
import os, shutil, sys
directory, size = sys.argv[1], int(sys.argv[2])
if sys.stdin.read() != "done":
    text = "loko-ref: the job ended early; the last step that each rank logged:\\n"
    for rank in range(size):
        try:
            with open(os.path.join(directory, f"rank-{rank:04d}")) as file:
                line = file.read().strip()
        except OSError:
            line = "nothing (or on a machine whose files are not seen here)"
        text += f"loko-ref:   rank {rank}: {line}\\n"
    os.write(2, text.encode())
shutil.rmtree(directory, ignore_errors=True)
"""

_SENTRY = """
import os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the ranks answer it
rank, launcher, size, world = map(int, sys.argv[1:5])
name = sys.argv[5] + "="

def running():
    here = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                state, parent = file.read().rsplit(")", 1)[1].split()[:2]
            if int(parent) == launcher and state not in "ZX":
                with open(f"/proc/{entry}/environ", errors="replace") as file:
                    words = file.read().split("\\0")
                here |= {int(w[len(name):]) for w in words if w.startswith(name)}
        except OSError:
            continue
    return here

polls, here = 0, set()
while polls < 4 and not select.select([sys.stdin], [], [], 0.5)[0]:
    here = here | running() if polls else running()
    polls = polls + 1 if len(here) < size else 0
if polls == 4:
    who = f"one of the {size} ranks on this machine"
    if size == world:
        who = f"rank {', '.join(str(k) for k in range(world) if k not in here)} of {world}"
    text = f"loko-ref: {who}, step 0 (start): ended before it joined the others\\n"
    os.write(2, text.encode())
    os.kill(rank, 9)
"""

_WIDTH = 80
"""Bytes of a line, so that a shorter one covers the one before; only the last may be longer."""

_LAUNCHERS = {"mpiexec", "mpiexec.hydra", "mpirun", "orterun", "prterun", "prted"}
_LAUNCHERS |= {"hydra_pmi_proxy", "ompirun_wrapper", "srun"}


def _launchers() -> list[int]:
    """Process ids of the launchers above this process, from its parent up."""
    found, pid = [], os.getppid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 1:
            stat = Path(f"/proc/{pid}/stat").read_text()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            names = {stat[stat.index("(") + 1 : stat.rindex(")")]}
            names |= {os.path.basename(w.decode(errors="replace")) for w in words[:2]}
            if not names & _LAUNCHERS:
                break
            found.append(pid)
            pid = int(stat.rsplit(")", 1)[1].split()[1])
    return found


def _launchers_stderr() -> int | None:
    """Open the stderr of the topmost launcher, if any."""
    with contextlib.suppress(OSError, IndexError):
        return os.open(f"/proc/{_launchers()[-1]}/fd/2", os.O_WRONLY | os.O_APPEND)
    return None


def _beside(script: str, *arguments: object, **more: Any) -> subprocess.Popen[bytes]:
    """Start a script that reads a pipe from here, and writes to the launcher's stderr."""
    stderr = _launchers_stderr()
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            **more,
        )
    finally:
        if stderr is not None:
            os.close(stderr)


@contextlib.contextmanager
def sentry(size: int, world: int, name: str) -> Iterator[None]:
    """End this process if one of those that the launcher began on this machine is gone.

    Parameters
    ----------
    size, world : int
        How many the launcher began here, and in all.
    name : str
        The variable that has a rank's number in its environment.
    """
    launchers = _launchers()
    if not launchers:  # such as a script around each rank: nothing is known of the others
        yield
        return
    process = _beside(_SENTRY, os.getpid(), launchers[0], size, world, name)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)


class Watch:
    """One rank's line, and on rank 0 the watcher.

    Parameters
    ----------
    share : callable
        Brings rank 0's value to every rank.
    """

    def __init__(self, rank: int, size: int, share: Callable[[Any], Any]) -> None:
        made = tempfile.mkdtemp(prefix="loko-ref-lte-") if rank == 0 else None
        self.directory = Path(share(made))
        self.watcher: subprocess.Popen[bytes] | None = None
        if rank == 0:
            # of a session of its own: it outlives the killing of the job's group
            self.watcher = _beside(_WATCHER, self.directory, size, start_new_session=True)
        self.directory.mkdir(exist_ok=True)  # on another machine
        self.path = self.directory / f"rank-{rank:04d}"
        self.file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.note("start")

    def note(self, text: str) -> None:
        """Replace this rank's line."""
        if self.file is not None:
            os.pwrite(self.file, " ".join(text.split()).ljust(_WIDTH).encode() + b"\n", 0)

    def done(self, wait: bool = True) -> None:
        """Dismiss the watcher, which prints nothing then; `wait` for its end, or leave it to it."""
        if self.file is not None:
            os.close(self.file)
            self.file = None
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the last one on its machine takes it away
                self.directory.rmdir()
        if self.watcher is not None and self.watcher.stdin is not None:
            self.watcher.stdin.write(b"done")
            self.watcher.stdin.close()
            if wait:
                self.watcher.wait(timeout=10)
            self.watcher = None
