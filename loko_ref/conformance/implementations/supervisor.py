"""Run a command and end its whole process tree; a script, run as the command's parent.

``python -I -S supervisor.py FD COMMAND ...`` starts the command on its own standard streams, and
closes its copies of them. ``FD`` is one end of a socket, over which it sends one line about the
command: ``failed ERRNO`` if it could not be started, ``ended STATUS`` (the wait status) when it has
ended. When it receives anything, or the other end closes (also because the process that held it was
killed), it ends every process of the tree and then itself.

On Linux it is the tree's subreaper: a process whose parent has ended becomes its child, whatever
process group or session it is in, so that the tree is complete as long as the supervisor has a
child. All are stopped before any is killed, so that none can start another; this is repeated until
no child is left. Other systems have no subreaper: the command's process group is killed, and a
process that left the group survives.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

__all__: list[str] = []

_LINUX = sys.platform == "linux"
_SET_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>


def _adopt_orphans() -> None:
    """Become the parent of every descendant whose parent ends."""
    if _LINUX:
        import ctypes

        ctypes.CDLL(None).prctl(_SET_SUBREAPER, 1, 0, 0, 0)


def _start(command: list[str]) -> tuple[int, int]:
    """Start the command in a session of its own; return its process id and 0, or an errno."""
    come, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                signal.signal(number, signal.SIG_DFL)
            os.execvp(command[0], command)
        except OSError as error:
            os.write(go, str(error.errno).encode())
        except ValueError:  # a NUL in a word
            os.write(go, b"22")
        finally:
            os._exit(127)
    os.close(go)
    with open(come, "rb") as stream:
        return child, int(stream.read() or 0)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def _by_parent() -> dict[int, list[int]]:
    """Return every process by its parent: slower, for a kernel without lists of children."""
    found: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
            found.setdefault(parent, []).append(int(entry))
    return found


def _descendants(root: int) -> list[int]:
    """Return all descendants, parents first."""
    if os.path.exists(f"/proc/{root}/task/{root}/children"):
        children = _children
    else:
        table = _by_parent()
        children = lambda pid: table.get(pid, [])  # noqa: E731
    found = children(root)
    for pid in found:  # grows during the loop
        found += children(pid)
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reaped() -> Iterator[tuple[int, int]]:
    """Yield process id and wait status of each ended child; ChildProcessError if none is left.

    All children of this process belong to the tree.
    """
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
        yield ended


def _end_tree(leader: int) -> None:
    """Kill until there is no child left."""
    if not _LINUX:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        return
    pause = 0.0
    with contextlib.suppress(ChildProcessError):
        while True:
            stopped: dict[int, None] = {}
            while new := [pid for pid in _descendants(os.getpid()) if pid not in stopped]:
                for pid in new:
                    _signal(pid, signal.SIGSTOP)
                stopped |= dict.fromkeys(new)
                for pid, _ in _reaped():  # where each one starts the next and ends
                    stopped.pop(pid, None)
            for pid in stopped:
                _signal(pid, signal.SIGKILL)
            for _ in _reaped():
                pass
            time.sleep(pause)
            pause = min(pause + 0.001, 0.1)


def main() -> None:
    """Start the command, report how it ends, and end its tree on request."""
    channel, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(channel, False)
    come, go = os.pipe()
    os.set_blocking(go, False)
    signal.set_wakeup_fd(go)  # each signal arrives as a byte, its number
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    _adopt_orphans()
    leader, error = _start(command)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # so that they close when the tree closes them
        os.dup2(nowhere, stream)
    with contextlib.suppress(BrokenPipeError):
        if error:
            os.write(channel, b"failed %d\n" % error)
        reported = bool(error)
        while True:
            ready = select.select([channel, come], [], [])[0]
            if channel in ready or set(os.read(come, 4096)) != {signal.SIGCHLD}:
                break
            with contextlib.suppress(ChildProcessError):
                for pid, status in _reaped():
                    if pid == leader and not reported:
                        reported = True
                        os.write(channel, b"ended %d\n" % status)
    _end_tree(leader)


if __name__ == "__main__":
    main()
