"""An implementation in any language: a command that speaks ``loko-ref/protocol/1``.

Time-out per request, restart after a crash, stderr's first and last lines kept, garbage on stdout
quoted: each is a finding of the one check in which it happens, and the next check finds a fresh
process.
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
from loko_ref.conformance.answer import Answer, Finding, check
from loko_ref.conformance.cases import Case
from loko_ref.conformance.operations import OPERATIONS
from loko_ref.conformance.protocol import ProtocolError
from loko_ref.errors import InputError, closest

__all__ = ["Command", "Ended"]

START_TIMEOUT = 30.0
"""Seconds that a command has for its hello."""

STOP_TIMEOUT = 5.0
"""Seconds that it has to exit after stop."""

LINES = 4
"""Lines of stderr that are quoted from its beginning, and as many from its end."""

ROOM = 400
"""Characters that either end may take."""


class Ended(Exception):
    """The process ended, or did not answer in time."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class _Process:
    """One run of the command: lines in, lines out, stderr's two ends."""

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
        self.begun: list[str] = []  # stderr's first lines
        self.ended: deque[str] = deque(maxlen=LINES)
        self.hidden = False  # whether there were lines between
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
                text = line.decode("utf-8", "backslashreplace").rstrip()
                if len(self.begun) < LINES:
                    self.begun += [text] if text else []
                elif text:
                    self.hidden |= len(self.ended) == LINES
                    self.ended.append(text)

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
            raise Ended("crashed", self.how_it_ended())
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

    def said(self) -> str:
        """Quote stderr: all of it where it is short, else how it begins and how it ends."""
        self.threads[1].join(0.2)
        begun, ended = " | ".join(self.begun), " | ".join(self.ended)
        if not begun:
            return ""
        whole = f"{begun} | {ended}" if ended else begun
        if not self.hidden and len(whole) <= 2 * ROOM:
            return f"; stderr: {whole}"
        return f"; stderr begins: {begun[:ROOM]}; stderr ends: {(ended or begun)[-ROOM:]}"

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
    large : int, optional
        Bytes from which a tensor goes by file, where the harness reads files;
        ``protocol.LARGE`` by default.

    Attributes
    ----------
    operations, dtypes : list of str
        What it offers.
    files : bool
        Whether it reads tensors from files.
    folder : path
        Where these lie while a request runs.

    Raises
    ------
    InputError
        If it cannot be started, does not say hello, or loses bits of the canary.
    """

    def __init__(self, command: str, large: int | None = None) -> None:
        self.target = command
        self._large = large
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
        self.files = False
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
            self.operations, self.dtypes, self.files = protocol.check_hello(answer, self.folder)
        except Ended as error:
            raise Ended(error.kind, f"{error}{self._drop()}") from None
        except ProtocolError as error:
            raise ProtocolError(f"{error}{self._drop()}") from None
        return process

    def _drop(self) -> str:
        """End the process, if there is one; return what it said on stderr."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        return process.said()

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
        """Send one message and wait for the answer, in a fresh process where there is none.

        Raises
        ------
        Ended, ProtocolError
            If there is no answer; the process is gone then, and the error quotes its stderr.
        """
        process = self._process or self._start()
        try:
            process.send(message)
            return process.receive(timeout)
        except Ended as error:
            raise Ended(error.kind, f"{error}{self._drop()}") from None
        except ProtocolError as error:
            raise ProtocolError(f"{error}{self._drop()}") from None

    def _clear(self) -> None:
        """Delete the files of a request, whoever wrote them."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.is_symlink() or not path.is_dir():
                    path.unlink()

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
            self.folder if self.files else None,
            self._large,
        )
        try:
            return self._answer(case, number, self.ask(message, timeout))
        except Ended as error:
            return Answer(finding=Finding(kind=error.kind, message=str(error)))
        except ProtocolError as error:  # of a tensor: the process may still be there
            text = f"{error}{self._drop()}"
            return Answer(finding=Finding(kind="protocol", message=text))
        except OSError as error:
            text = f"could not be started again: {error}"
            return Answer(finding=Finding(kind="crashed", message=text))
        finally:
            self._clear()

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
        folder = self.folder if self.files else None
        return check({k: protocol.decode(v, k, folder) for k, v in outputs.items()}, case)
