"""An implementation in any language: a command that speaks ``loko-ref/protocol/1``.

Time-out per request, restart after a crash, stderr kept, garbage on stdout quoted: each is a
finding of the one check in which it happens, and the next check finds a fresh process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

from loko_ref.conformance import protocol
from loko_ref.conformance.cases import Case
from loko_ref.conformance.implementation import Answer, Finding, check
from loko_ref.conformance.operations import OPERATIONS
from loko_ref.conformance.protocol import ProtocolError
from loko_ref.errors import InputError, closest

__all__ = ["Command", "Ended"]

START_TIMEOUT = 30.0
"""Seconds that a command has for its hello."""

STOP_TIMEOUT = 5.0
"""Seconds that it has to exit after stop."""


class Ended(Exception):
    """The process ended, or did not answer in time."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class _Process:
    """One run of the command: lines in, lines out, stderr's tail."""

    def __init__(self, arguments: list[str]) -> None:
        self.child = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        self.outgoing: queue.Queue[bytes | None] = queue.Queue()
        self.errors: deque[str] = deque(maxlen=20)
        self.threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._read, self._read_errors, self._write)
        ]
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while line := self.child.stdout.readline(protocol.LINE_LIMIT + 1):
                self.lines.put(line)
                if len(line) > protocol.LINE_LIMIT:
                    break
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.child.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            while line := self.child.stderr.readline(4096):
                self.errors.append(line.decode("utf-8", "backslashreplace").rstrip())

    def _write(self) -> None:
        assert self.child.stdin is not None
        with contextlib.suppress(ValueError, OSError):
            while (line := self.outgoing.get()) is not None:
                self.child.stdin.write(line)
                self.child.stdin.flush()

    def send(self, message: dict[str, Any]) -> None:
        self.outgoing.put(json.dumps(message, allow_nan=False).encode() + b"\n")

    def receive(self, timeout: float | None) -> dict[str, Any]:
        """Next message; Ended or ProtocolError where there is none."""
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            raise Ended("timeout", f"did not answer within {timeout:g} s") from None
        if line is None:
            raise Ended("crashed", f"{self.how_it_ended()}{self.tail()}")
        if len(line) > protocol.LINE_LIMIT:
            raise ProtocolError(f"a line of more than {protocol.LINE_LIMIT} bytes")
        return protocol.parse(line)

    def how_it_ended(self) -> str:
        try:
            code = self.child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its stdout"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def tail(self) -> str:
        self.threads[1].join(0.2)
        text = " | ".join(list(self.errors)[-4:])
        return f"; stderr ends: {text[-400:]}" if text else ""

    def kill(self) -> None:
        """End the process and its children, by its own group."""
        if self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self.outgoing.put(None)
        for thread in self.threads:
            thread.join(1)
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()


class Command:
    """A command as an implementation; use it as a context manager.

    Parameters
    ----------
    command : str
        As it would be typed; split as a shell splits, no shell runs.

    Raises
    ------
    InputError
        If it cannot be started, does not say hello, or loses bits of the canary.
    """

    def __init__(self, command: str) -> None:
        self.target = command
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise InputError("--cmd", repr(command), "a command", str(error)) from None
        if not self._arguments:
            raise InputError("--cmd", repr(command), "a command", "an empty string")
        self._folder = tempfile.TemporaryDirectory(prefix="loko-ref-")
        self.folder = Path(self._folder.name)
        self._process: _Process | None = None
        self._number = 0
        self.operations: list[str] = []
        self.dtypes: list[str] = []
        self._files = False
        try:
            self._start()
        except (Ended, ProtocolError, OSError) as error:
            self.close()
            raise InputError(
                "--cmd",
                f"{command!r}, which {error}"
                if isinstance(error, Ended)
                else f"{command!r}: {error}",
                f"a command that speaks {protocol.PROTOCOL} ('loko-ref protocol' prints it)",
                "not built, not executable, or something else on stdout",
            ) from None
        notes = []
        for name in self.operations:
            if name not in OPERATIONS:
                near = closest(name, OPERATIONS)
                hint = f"; the closest is '{near}'" if near else ""
                notes.append(f"{name!r} is no operation of the catalogue and was not run{hint}")
        self.notes = tuple(notes)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> _Process:
        process = _Process(self._arguments)
        self._process = process
        try:
            process.send(protocol.hello(str(self.folder)))
            answer = process.receive(START_TIMEOUT)
            self.operations, self.dtypes, self._files = protocol.check_hello(answer, self.folder)
        except (Ended, ProtocolError):
            self._drop()
            raise
        return process

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def close(self) -> int | None:
        """Send stop; kill what does not go. Returns its exit code, None if it had to be killed."""
        code: int | None = None
        if self._process is not None:
            self._process.send({"type": "stop"})
            try:
                code = self._process.child.wait(timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                code = None
            self._drop()
        self._folder.cleanup()
        return code

    def ask(self, message: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        """Send one message and wait for the answer, in a fresh process where there is none."""
        process = self._process or self._start()
        process.send(message)
        return process.receive(timeout)

    def run(self, case: Case, timeout: float | None = None) -> Answer:
        """Run one case; whatever goes wrong is its finding."""
        if case.operation.name not in self.operations:
            return Answer(declined="the implementation has no such operation")
        if case.dtype not in self.dtypes:
            return Answer(declined=f"the implementation does not offer {case.dtype}")
        self._number += 1
        number = self._number
        message = protocol.request(
            number,
            case.operation.name,
            case.inputs(),
            case.options,
            self.folder if self._files else None,
        )
        try:
            return self._answer(case, number, self.ask(message, timeout))
        except Ended as error:
            self._drop()
            return Answer(finding=Finding(kind=error.kind, message=str(error)))
        except ProtocolError as error:
            self._drop()
            return Answer(finding=Finding(kind="protocol", message=str(error)))
        except OSError as error:
            self._drop()
            message_ = f"could not be started again: {error}"
            return Answer(finding=Finding(kind="crashed", message=message_))

    def _answer(self, case: Case, number: int, message: dict[str, Any]) -> Answer:
        kind = message["type"]
        if message.get("id") != number:
            raise ProtocolError(
                f"an answer to request {message.get('id')!r:.40} in place of {number}: "
                f"{protocol.quote(json.dumps(message))}"
            )
        if kind == "unsupported":
            reason = str(message.get("reason", ""))[:200]
            return Answer(declined="it declines" + (f": {reason}" if reason else ""))
        if kind == "error":
            text = " ".join(str(message.get("message", "")).split())[:300]
            return Answer(finding=Finding(kind="raised", message=f"reported an error: {text}"))
        outputs = message.get("outputs")
        if kind != "result" or not isinstance(outputs, dict):
            raise ProtocolError(
                f"an answer that is no result, unsupported or error: "
                f"{protocol.quote(json.dumps(message))}"
            )
        folder = self.folder if self._files else None
        return check({k: protocol.decode(v, k, folder) for k, v in outputs.items()}, case)
