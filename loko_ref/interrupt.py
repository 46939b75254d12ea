"""Ctrl-C: exit code 130, one line that says what is kept and how to go on, never a traceback.

While a command is being imported and read, an interrupt ends the process on the spot: there is
nothing to close. While it works, it is raised as a KeyboardInterrupt, so that files, children and
progress bars are closed; inside an import (where one that is raised can be lost) it is held back
until the import is over. A second one within a second changes nothing; a later one ends the process
on the spot, for the first was swallowed by someone else's code. Files are written whole or not at
all, so that no moment is a wrong one.

Under a launcher of MPI the line is rank 0's alone. SIGTERM is answered alike (143), but not under a
launcher: there it is the launcher's own way to end what is left of a job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # until this module is imported nothing answers: it imports the least it can
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import Any, NoReturn

__all__ = [
    "RANKS",
    "after",
    "command_line",
    "handled",
    "joined",
    "keep",
    "resumes",
    "without",
    "working",
]

RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
"""Where launchers say which rank a process is."""

_GRACE = 1.0  # seconds in which a second interrupt is the same one
_JOINING = 0.5  # the longest that a rank waits for the others to answer: some may hear nothing
_JOINED = 2.0  # and when all have joined: each answers, the slowest after its step
_IMPORT = 0.4  # the longest that an import holds one back

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_NOTHING = "this command keeps nothing on its way: start it again"


class _State:
    """What the handler knows: whether a command works, what is kept, the interrupt under way."""

    working = False
    kept: Callable[[], str] | None = None
    number: int = 2
    since: float | None = None
    held = False
    joined = False


def keep(text: Callable[[], str] | None) -> None:
    """Set what an interrupt says: a function of no argument that returns it.

    A text that begins with "kept" is also said of an error that ends the command.
    """
    _State.kept = text


def joined() -> None:
    """Note that every rank of a launcher has joined the others."""
    _State.joined = True


def resumes(path: object | None) -> None:
    """Set what an interrupt says before a run has begun, from its start or from a checkpoint."""
    again = command_line(*sys.argv[1:])
    text = "nothing is kept: no run had begun"
    keep(lambda: text if path is None else f"{path} is as it was; go on with: {again}")


def after(error: object) -> str:
    """Return an error's text, and what is kept in spite of it."""
    said = "" if _State.kept is None else _State.kept()
    return f"{error} K{said[1:]}" if said.startswith("kept") else str(error)


def command_line(*words: object) -> str:
    """Return a shell command that runs ``loko-ref`` as this process was run, with other words.

    Under a launcher it starts as many ranks again; any number goes on from a checkpoint.
    """
    import shlex
    import shutil

    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py":
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        start = [python, "-m", "loko_ref"]
        if _rank() is not None:
            size = os.environ.get("PMI_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
            beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
            mpiexec = beside if os.path.exists(beside) else "mpiexec"
            start = [mpiexec, "-n", size, python, "-m", "mpi4py", "-m", "loko_ref"]
    else:
        name = os.path.basename(script)
        start = [name if shutil.which(name) == script else script]
    return shlex.join([*start, *map(str, words)])


def _rank() -> str | None:
    return next((os.environ[name] for name in RANKS if name in os.environ), None)


def _line() -> str:
    said = _NOTHING if _State.working else "nothing was begun"
    if _State.kept is not None:
        said = _State.kept()
    return f"loko-ref: {_NAMES[signal.Signals(_State.number)]}; {said}\n"


def _leave_now() -> NoReturn:
    """End the process without unwinding it; under a launcher, the ranks that cannot answer too."""
    rank = _rank()
    if rank in (None, "0"):
        _tell()
    if rank is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the sign that this rank has answered
        until = time.monotonic() + (_JOINED if _State.joined else _JOINING)
        while (silent := _silent()) and time.monotonic() < until:
            time.sleep(0.02)
        if "0" in silent.values():
            _tell()
        for other in silent:  # it waits inside MPI for ranks to join, and hears nothing
            with contextlib.suppress(OSError):
                os.kill(other, signal.SIGTERM)
        time.sleep(0.1)  # the launcher ends a job with its first rank: let the line through
    os._exit(128 + _State.number)


def _tell() -> None:
    with contextlib.suppress(OSError):
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}{_line()}".encode())


def _silent() -> dict[int, str]:
    """Return the launcher's ranks on this machine that have not answered: process id -> rank."""
    found, parent = {}, os.getppid()
    with contextlib.suppress(OSError):
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
        for child in children:
            with contextlib.suppress(OSError), open(f"/proc/{child}/environ", "rb") as file:
                pairs = dict(item.partition(b"=")[::2] for item in file.read().split(b"\0"))
                rank = next((pairs[r.encode()] for r in RANKS if r.encode() in pairs), None)
                if rank is not None and not _ignores(child, signal.SIGTERM):
                    found[child] = rank.decode()
    return found


def _ignores(pid: int, number: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        mask = next(line.split()[1] for line in file if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _again(number: int) -> None:
    import _thread

    time.sleep(0.02)
    _thread.interrupt_main(signal.Signals(number))


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.since is None:
        _State.since, _State.number = now, int(number)
    elif _State.held:  # the same one, delivered again
        _State.held = False
    elif now - _State.since < _GRACE:
        return
    else:
        _leave_now()
    importing = _importing(frame)
    if not _State.working or (importing and now - _State.since > _IMPORT):
        _leave_now()
    if importing:
        import threading

        _State.held = True
        threading.Thread(target=_again, args=(number,), daemon=True).start()
        return
    raise KeyboardInterrupt


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Answer interrupts of this process while the block runs."""
    numbers = [signal.SIGINT] if _rank() is not None else [signal.SIGINT, signal.SIGTERM]
    before: list[tuple[signal.Signals, Any]] = []
    _State.working, _State.kept, _State.since, _State.held = False, None, None, False
    with contextlib.suppress(ValueError):  # not the main thread: who runs it answers
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:  # of a job in the background, say
                before.append((number, signal.signal(number, _handle)))
    try:
        yield
    finally:
        for number, handler in before if _State.since is None else ():
            signal.signal(number, handler)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """From here on an interrupt unwinds what is under way, and is answered when that is closed."""
    _State.working = True
    try:
        yield
    except KeyboardInterrupt:
        if _State.since is not None:  # the interpreter's end would take long, or wait for ranks
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            _leave_now()
        print(_line(), end="", file=sys.stderr)  # raised by other code than the handler
        raise SystemExit(128 + _State.number) from None
    finally:
        _State.working = False


def without(words: Sequence[str], option: str) -> list[str]:
    """Leave an option and its value out of a command's words.

    Examples
    --------
    >>> without(["lte", "--resume", "a", "--resume=b", "--heads", "2"], "--resume")
    ['lte', '--heads', '2']
    """
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == option:
            next(rest, None)
        elif not word.startswith(f"{option}="):
            left.append(word)
    return left
