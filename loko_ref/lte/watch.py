"""The last step that each rank logged, shown when a job dies.

Each rank keeps one line in a file of its own, ``rank-0003``, in a directory that rank 0 makes; what
was written stays when the process is killed. Rank 0 starts a watcher beside it that waits on a
pipe: if the pipe closes before rank 0 said that all is well, rank 0 is gone (killed, or taken down
with the job by the launcher), and the watcher prints every rank's line. Then, or when all is well,
it removes the directory and ends.

MPICH's launcher drops what it has not forwarded yet when a job dies, so the watcher writes to the
launcher's own stderr where that runs on the same machine (Linux: through /proc). On other machines,
or where that cannot be opened, it writes to rank 0's stderr.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Watch"]

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

_WIDTH = 80
"""Bytes of a line, so that a shorter one covers the one before; only the last may be longer."""

_LAUNCHERS = {"mpiexec", "mpiexec.hydra", "mpirun", "orterun", "prterun", "prted"}
_LAUNCHERS |= {"hydra_pmi_proxy", "ompirun_wrapper", "srun"}


def _launchers_stderr() -> int | None:
    """Open the stderr of the launcher that is the topmost of this process's ancestors, if any."""
    found, pid = None, os.getppid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 1:
            stat = Path(f"/proc/{pid}/stat").read_text()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            names = {stat[stat.index("(") + 1 : stat.rindex(")")]}
            names |= {os.path.basename(w.decode(errors="replace")) for w in words[:2]}
            if not names & _LAUNCHERS:
                break
            found, pid = pid, int(stat.rsplit(")", 1)[1].split()[1])
    if found is None:
        return None
    with contextlib.suppress(OSError):
        return os.open(f"/proc/{found}/fd/2", os.O_WRONLY | os.O_APPEND)
    return None


class Watch:
    """One rank's line, and on rank 0 the watcher.

    Parameters
    ----------
    rank, size : int
        Of the world.
    share : callable
        Brings rank 0's value to every rank.
    """

    def __init__(self, rank: int, size: int, share: Callable[[Any], Any]) -> None:
        made = tempfile.mkdtemp(prefix="loko-ref-lte-") if rank == 0 else None
        self.directory = Path(share(made))
        self.watcher: subprocess.Popen[bytes] | None = None
        if rank == 0:
            stderr = _launchers_stderr()
            self.watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCHER, str(self.directory), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that it outlives the killing of the job's group
            )
            if stderr is not None:
                os.close(stderr)
        self.directory.mkdir(exist_ok=True)  # on another machine
        self.path = self.directory / f"rank-{rank:04d}"
        self.file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.note("start")

    def note(self, text: str) -> None:
        """Replace this rank's line."""
        if self.file is not None:
            os.pwrite(self.file, " ".join(text.split()).ljust(_WIDTH).encode() + b"\n", 0)

    def done(self) -> None:
        """All is well: the watcher goes without a word."""
        if self.file is not None:
            os.close(self.file)
            self.file = None
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the last one on its machine takes it away
                self.directory.rmdir()
        if self.watcher is not None and self.watcher.stdin is not None:
            self.watcher.stdin.write(b"done")
            self.watcher.stdin.close()
            self.watcher.wait(timeout=10)
            self.watcher = None
