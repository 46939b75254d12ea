"""An implementation in any language: a command that speaks ``loko-ref/protocol/1``.

A time-out, a crash or a malformed line is a finding of the one check in which it occurs, with
stderr's first and last lines; the whole process tree is then ended, and the next check starts a new
process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.implementations import protocol
from loko_ref.conformance.implementations.child import Child, Ended
from loko_ref.conformance.implementations.protocol import ProtocolError
from loko_ref.conformance.implementations.target import (
    stated_catalogue,
    stated_options,
    too_new,
    unknown_operations,
)
from loko_ref.conformance.judge.answer import NOT_OFFERED, Answer, Finding, check
from loko_ref.conformance.judge.declared import read_precision
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.errors import InputError

START_TIMEOUT = 30.0
"""Seconds until a command has to answer hello, unless a time-out is given."""

STOP_TIMEOUT = 5.0
"""Seconds until it has to exit after stop, unless the time-out is shorter."""


class Command:
    """A command as an implementation; a context manager.

    Parameters
    ----------
    command : str
        The command line; split as by a shell, but run without one.
    large : int, optional
        Bytes from which a tensor is passed by file, if the harness reads files;
        ``protocol.LARGE`` by default.
    timeout : float, optional
        Seconds until it has to answer the first hello, and at most until it has to exit after stop.

    Attributes
    ----------
    operations, dtypes : list of str
        What it offers.
    files : bool
        Whether it reads tensors from files.
    catalogue : int
        Version of the catalogue that it states that it was written for; 1 if it states none.
    options : dict
        The one value that it states that it has of an option: it is sent no other cases.
    precision : dict of str to str
        The precision that it states, quantity -> format.
    folder : path
        Where these lie during a request.
    notes : tuple of str
        Remarks for the report: unknown operations, and `extra`.
    extra : str
        A line received after the last answer, quoted; known once it has been closed.
    stop_timeout : float
        Seconds until it has to exit after stop.

    Raises
    ------
    InputError
        If it cannot be started, does not answer hello in time, or loses bits of the canary.
    """

    def __init__(
        self, command: str, large: int | None = None, timeout: float | None = None
    ) -> None:
        self.target = command
        self._large = large
        self._timeout = START_TIMEOUT if timeout is None else timeout
        if os.name != "posix":
            raise InputError("--cmd", repr(command), "a POSIX system", "it needs pipes and signals")
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise InputError("--cmd", repr(command), "a command", str(error)) from None
        if not self._arguments:
            raise InputError("--cmd", repr(command), "a command", "an empty string")
        self._folder = tempfile.TemporaryDirectory(prefix="loko-ref-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._child: Child | None = None
        self._number = 0
        self.notes: tuple[str, ...] = ()
        self.extra = ""
        self.stop_timeout = min(self._timeout, STOP_TIMEOUT)
        self.operations: list[str] = []
        self.dtypes: list[str] = []
        self.files = False
        self.catalogue = 1
        self.options: dict[str, Any] = {}
        self.precision: dict[str, str] = {}
        try:
            self._start(self._timeout, time.monotonic() + self._timeout)
        except (Ended, ValueError, OSError) as error:  # ValueError: of the protocol, or a NUL
            self.close()
            raise InputError(
                "--cmd",
                f"{command!r}, which {error}"
                if isinstance(error, Ended)
                else f"{command!r}: {error}",
                f"a command that speaks {protocol.PROTOCOL} ('loko-ref protocol' prints it)",
                "not built, not executable, or something else on stdout"
                if getattr(error, "kind", None) != "timeout"
                else "a start that takes longer than the timeout, or a command that waits for "
                "something else than hello",
            ) from None
        self.notes += unknown_operations(self.operations)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:  # such as an interrupt: do not wait
            self._drop()
            self._folder.cleanup()

    def _start(self, timeout: float | None, deadline: float | None) -> Child:
        self.folder.mkdir(0o700, exist_ok=True)  # a previous process may have removed it
        self._child = child = Child(self._arguments)
        message = protocol.hello(str(self.folder))
        answer, _ = self._exchange(child, message, timeout, deadline, " hello")
        try:
            self.operations, self.dtypes, self.files = protocol.check_hello(answer, self.folder)
            self.catalogue = stated_catalogue("catalogue", answer.get("catalogue"))
            self.options = stated_options("options", answer.get("options"))
            self.precision = read_precision("precision", answer.get("precision"))
        except (ProtocolError, InputError) as error:
            raise ProtocolError(f"{error}{self._drop()}") from None
        return child

    def _exchange(
        self,
        child: Child,
        message: dict[str, Any],
        timeout: float | None,
        deadline: float | None,
        what: str,
        more: str = "",
    ) -> tuple[dict[str, Any], bytes]:
        """Send a message; return the answer and the beginning of its line."""
        try:
            line = child.ask(_line(message), deadline)
            return protocol.parse(line), line[:400]
        except Ended as error:
            within = f"{what} within {timeout:g} s{more}" if error.kind == "timeout" else ""
            raise Ended(error.kind, f"{error}{within}{self._drop()}") from None
        except ProtocolError as error:
            raise ProtocolError(f"{error}{self._drop()}") from None
        except OSError:
            self._drop()
            raise

    def _drop(self) -> str:
        """End the process tree, if there is one; return its stderr."""
        child, self._child = self._child, None
        if child is None:
            return ""
        child.kill()
        return child.errors()

    def close(self) -> int | None:
        """Send stop and end the process tree; return the exit code, None if it had to be killed."""
        code: int | None = None
        if self._child is not None:
            more = self._child.stop(_line({"type": "stop"}), time.monotonic() + self.stop_timeout)
            if more:
                self.extra = protocol.quote(more)
                self.notes += (f"after its last answer it wrote another line: {self.extra}",)
            code = self._child.status
            self._drop()
        self._folder.cleanup()
        return code

    def having(self, options: Mapping[str, Any]) -> Command:
        """Return it with more options that it has one value of."""
        self.options = {**self.options, **options}
        return self

    def ready(self, timeout: float) -> None:
        """Start it, within `timeout` seconds, unless it is running; raises as `ask` does."""
        if self._child is None:
            self._start(timeout, time.monotonic() + timeout)

    def ask(self, message: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        """Send one message and return the answer; starts a process if none is running.

        Parameters
        ----------
        message : dict
            The request.
        timeout : float or None
            Seconds for all of it, the start of a new process included.

        Raises
        ------
        Ended, ProtocolError
            If there is no answer; the process has been ended then, and the error quotes its stderr.
        """
        return self._ask(message, timeout)[0]

    def _ask(self, message: dict[str, Any], timeout: float | None) -> tuple[dict[str, Any], bytes]:
        deadline = None if timeout is None else time.monotonic() + timeout
        start, child, more = time.monotonic(), self._child, ""
        if child is None:
            child = self._start(timeout, deadline)
            seconds = time.monotonic() - start
            if timeout is not None and seconds > timeout / 2:  # then the likely cause
                more = f", of which its restart took {seconds:.3g} s"
        return self._exchange(child, message, timeout, deadline, "", more)

    def _clear(self) -> None:
        """Delete the files of a request and of its answer."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def run(self, case: Case, timeout: float | None = None) -> Answer:
        """Run one case; any failure is returned as its finding."""
        if case.operation.name not in self.operations:
            return Answer(declined=NOT_OFFERED)
        if case.dtype not in self.dtypes:
            return Answer(declined=f"the implementation does not offer {case.dtype}")
        newer = case.newer(self.catalogue)
        if newer:
            return Answer(declined=too_new(newer, self.catalogue))
        self._number += 1
        number = self._number
        try:
            message = protocol.request(
                number,
                case.operation.name,
                case.inputs(),
                case.operation.known(case.options, self.catalogue),
                self.folder if self.files else None,
                self._large,
            )
            return self._answer(case, number, *self._ask(message, timeout))
        except Ended as error:
            return Answer(finding=Finding(kind=error.kind, message=str(error)))
        except ProtocolError as error:  # of a tensor: the process may still run
            text = f"{error}{self._drop()}"
            return Answer(finding=Finding(kind="protocol", message=text))
        except (InputError, OSError) as error:  # such as a folder that it has removed
            text = f"could not be sent the request: {error}{self._drop()}"
            return Answer(finding=Finding(kind="crashed", message=text))
        finally:
            self._clear()

    def _answer(self, case: Case, number: int, message: dict[str, Any], line: bytes) -> Answer:
        kind = message["type"]
        if message.get("id") != number or isinstance(message["id"], bool):
            raise ProtocolError(
                f"an answer to request {protocol.show(message.get('id'))} in place of {number}: "
                f"{protocol.quote(line)}"
            )
        if kind == "unsupported":
            reason = protocol.text(message, "reason")
            return Answer(declined="it declines" + (f": {reason}" if reason else ""))
        if kind == "error":
            text = f"reported an error: {protocol.text(message, 'message')}"
            return Answer(finding=Finding(kind="raised", message=text))
        outputs = message.get("outputs")
        if kind != "result" or not isinstance(outputs, dict):
            raise ProtocolError(
                f"an answer that is not result, unsupported or error: {protocol.quote(line)}"
            )
        case = case.holding(outputs)
        known = {output.name for output in case.operation.outputs} | set(case.operation.factors)
        if not set(outputs) <= known:  # `check` names the unknown one; no tensor is decoded
            return check(dict.fromkeys(outputs), case)
        most = protocol.LINE_LIMIT + 2 * sum(array.nbytes for array in expected(case).values())
        folder = self.folder if self.files else None
        return check(protocol.decode_all(outputs, folder, most), case)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, allow_nan=False).encode() + b"\n"
