"""Processes of the tests: found by a mark in their environment, and ended with their whole tree."""

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path

MARK = "LOKO_REF_TEST"
"""Variable that has another value in the environment of each job."""


def new_mark() -> str:
    return uuid.uuid4().hex


def _parents() -> dict[int, int]:
    """Parent of every process that is no zombie, from /proc."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state not in "ZX":
                    found[int(entry.name)] = int(parent)
    return found


def _bytes(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def command_line(pid: int) -> str:
    return _bytes(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def with_token(token: str) -> list[int]:
    """Processes that have the token in their command line or environment, but for this one."""
    return [
        pid
        for pid in _parents()
        if pid != os.getpid()
        and any(token.encode() in _bytes(pid, name) for name in ("cmdline", "environ"))
    ]


def descendants(*roots: int) -> list[int]:
    """Children, their children and so on."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    todo = list(roots)
    for pid in todo:  # grows as it goes
        todo += [child for child in children.get(pid, []) if child not in todo]
    return todo[len(roots) :]


def end_tree(pid: int, mark: str, within: float = 10) -> None:
    """Kill a process and its descendants, those whose parents have ended too, by their mark."""
    until = time.monotonic() + within
    while left := {p for p in (pid, *descendants(pid)) if p in _parents()} | set(with_token(mark)):
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none begins another meanwhile
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, number)
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.01)
