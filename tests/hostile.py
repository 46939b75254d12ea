"""Run one hostile input in a process of its own, with bounded time and memory, and report its end.

The process is a fork of the test's: what is imported stays imported, and an input costs a few
milliseconds. Linux alone has the limits that this needs; elsewhere the tests skip.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from loko_ref.errors import BackendError, InputError, MissingExtraError, NumericalError

OURS = (BackendError, InputError, MissingExtraError, NumericalError)
"""What an input that cannot be used may raise."""

SECONDS = 20.0
"""Time that one input may take, generous for a loaded machine: a hang takes for ever."""

MEMORY = 200 * 2**20
"""Bytes that one input may take beyond what the process has when it begins."""

needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="bounds memory and time by Linux's own means"
)


@dataclass(frozen=True)
class Outcome:
    """How one input ended.

    Attributes
    ----------
    kind : {"accepted", "refused", "exit", "traceback", "hang", "memory", "crash"}
        ``refused``: one of our errors; ``exit``: SystemExit, as commands end; ``traceback``: any
        other exception.
    text : str
        The error's message, the exit code, the traceback.
    value : object
        What was returned, where it can be pickled; the code of an exit.
    printed : str
        What went to stdout and stderr.
    """

    kind: str
    text: str = ""
    value: Any = None
    printed: str = ""


def _child(call: Callable[[], Any], memory: int) -> tuple[str, str, Any]:
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, hard))
    try:
        return "accepted", "", call()
    except MemoryError:
        return "memory", traceback.format_exc(limit=-8), None
    except OURS as error:
        return "refused", str(error), None
    except SystemExit as stop:
        return "exit", str(stop.code), stop.code
    except BaseException:  # the very question is what else may come
        return "traceback", traceback.format_exc(limit=-12), None


def run(call: Callable[[], Any], *, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Call a function in a fork with a time-out and a bound on its memory."""
    come, go = os.pipe()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.close(come)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - it lives as long as the child
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            kind, text, value = _child(call, memory)
            sys.stdout.flush()
            sys.stderr.flush()
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            try:
                payload = pickle.dumps((kind, text, value))
            except Exception:  # what came back cannot travel: its repr does
                payload = pickle.dumps((kind, text, repr(value)[:200]))
            with os.fdopen(go, "wb") as stream:
                stream.write(payload)
            os._exit(0)
        os.close(go)
        payload, deadline = b"", time.monotonic() + seconds
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([come], [], [], left)[0]:
                    return Outcome("hang", f"no end within {seconds:g} s")
                part = os.read(come, 2**20)
                if not part:
                    break
                payload += part
        finally:
            os.close(come)
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        output.seek(0)
        printed = output.read().decode(errors="replace")
    if not payload:
        return Outcome("crash", f"wait status {status}", None, printed)
    return Outcome(*pickle.loads(payload), printed)
