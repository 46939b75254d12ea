"""Interrupts: exit code 130 and one line on what was saved and how to resume, never a traceback.

While a command is imported and its options are parsed, an interrupt ends the process immediately,
since there is nothing to close. While the command works, it is raised as a KeyboardInterrupt, so
that files, child processes and progress bars are closed; inside an import, where an exception can
be lost, it is deferred until the import has finished. A second interrupt within a second is
ignored; a later one ends the process immediately, because other code has caught the first. Files
are written whole or not at all, so an interrupt may come at any time.

Under an MPI launcher rank 0 alone prints the line. SIGTERM is handled likewise (143), except under
a launcher, which uses it to end the remaining ranks of a job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # no interrupt is handled until this module is imported: it imports little
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import Any, NoReturn

RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
"""Environment variables in which launchers pass the rank of a process."""

_GRACE = 1.0  # seconds in which a further interrupt counts as the same one
_JOINING = 0.5  # most seconds to wait for other ranks, some of which may not handle signals yet
_JOINED = 2.0  # the same once all ranks have joined: each handles it, at the latest after its step
_IMPORT = 0.4  # most seconds that an import defers an interrupt

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_NOTHING = "this command saves no intermediate results: start it again"


class _State:
    """State of the handler: whether a command works, its text, the interrupt being handled."""

    working = False
    kept: Callable[[], str] | None = None
    number: int = 2
    since: float | None = None
    held = False
    joined = False


def keep(text: Callable[[], str] | None) -> None:
    """Set the text printed on an interrupt, as a function without arguments that returns it.

    A text that starts with "kept" is also appended to an error that ends the command.
    """
    _State.kept = text


def joined() -> None:
    """Record that all ranks of a launcher have joined."""
    _State.joined = True


def resumes(path: object | None) -> None:
    """Set the text printed on an interrupt before a run starts or is resumed from a checkpoint."""
    again = command_line(*sys.argv[1:])
    text = "nothing is kept: no run had started"
    keep(lambda: text if path is None else f"{path} is unchanged; resume with: {again}")


def after(error: object) -> str:
    """Return an error's text, followed by what was saved before it."""
    kept = "" if _State.kept is None else _State.kept()
    return f"{error} K{kept[1:]}" if kept.startswith("kept") else str(error)


def command_line(*words: object) -> str:
    """Return a shell command that runs ``loko-ref`` as this process was run, with other arguments.

    Under a launcher it starts the same number of ranks; any number can resume from a checkpoint.
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
    text = _NOTHING if _State.working else "nothing was started"
    if _State.kept is not None:
        text = _State.kept()
    return f"loko-ref: {_NAMES[signal.Signals(_State.number)]}; {text}\n"


def _leave_now() -> NoReturn:
    """End the process without unwinding; under a launcher also the ranks that cannot react."""
    rank = _rank()
    if rank in (None, "0"):
        _print_line()
    if rank is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # marks this rank as having reacted
        until = time.monotonic() + (_JOINED if _State.joined else _JOINING)
        while (silent := _silent()) and time.monotonic() < until:
            time.sleep(0.02)
        if "0" in silent.values():
            _print_line()
        for other in silent:  # it waits inside MPI for ranks to join, and handles no signal
            with contextlib.suppress(OSError):
                os.kill(other, signal.SIGTERM)
        time.sleep(0.1)  # the launcher ends a job with its first rank: let it forward the line
    os._exit(128 + _State.number)


def _print_line() -> None:
    with contextlib.suppress(OSError):
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}{_line()}".encode())


def _silent() -> dict[int, str]:
    """Return the launcher's ranks on this machine that have not reacted: process id -> rank."""
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
    """Handle interrupts of this process while the block runs."""
    numbers = [signal.SIGINT] if _rank() is not None else [signal.SIGINT, signal.SIGTERM]
    before: list[tuple[signal.Signals, Any]] = []
    _State.working, _State.kept, _State.since, _State.held = False, None, None, False
    with contextlib.suppress(ValueError):  # not the main thread: its caller handles them
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored in a background job
                before.append((number, signal.signal(number, _handle)))
    try:
        yield
    finally:
        for number, handler in before if _State.since is None else ():
            signal.signal(number, handler)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Unwind the block on an interrupt, then print its line and exit."""
    _State.working = True
    try:
        yield
    except KeyboardInterrupt:
        if _State.since is not None:  # a regular exit could take long, or wait for ranks
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            _leave_now()
        print(_line(), end="", file=sys.stderr)  # not raised by the handler
        raise SystemExit(128 + _State.number) from None
    finally:
        _State.working = False


def without(words: Sequence[str], option: str) -> list[str]:
    """Return a command's arguments without an option and its value.

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
