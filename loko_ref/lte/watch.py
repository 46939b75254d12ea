"""The last step that each rank logged, shown when a job dies.

Each rank keeps one line in a file of its own, ``rank-0003``, in a directory that rank 0 makes; what
was written stays when the process is killed. Rank 0 starts a watcher beside it that waits on a
pipe: if the pipe closes before rank 0 said that all is well, rank 0 is gone (killed, or taken down
with the job by the launcher), and the watcher prints every rank's line. Then, or when all is well,
it removes the directory and ends.
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
word = sys.stdin.read()
if word != "done":
    lines = ["loko-ref: the job ended early; the last step that each rank logged:"]
    for rank in range(size):
        try:
            with open(os.path.join(directory, f"rank-{rank:04d}")) as file:
                line = file.read().strip()
        except OSError:
            line = "nothing (or on a machine whose files are not seen here)"
        lines.append(f"loko-ref:   rank {rank}: {line}")
    os.write(2, ("\\n".join(lines) + "\\n").encode())
shutil.rmtree(directory, ignore_errors=True)
"""

_WIDTH = 80


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
            self.watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCHER, str(self.directory), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # so that it outlives the killing of the job's group
            )
        self.directory.mkdir(exist_ok=True)  # on another machine
        self.path = self.directory / f"rank-{rank:04d}"
        self.file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.note("start")

    def note(self, text: str) -> None:
        """Replace this rank's line."""
        if self.file is not None:
            os.pwrite(self.file, text[:_WIDTH].ljust(_WIDTH).encode() + b"\n", 0)

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
