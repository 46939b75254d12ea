"""A running command: one line sent, one line received, and the end of its whole process tree.

All input is bounded: stdout is read one line at a time (a command that writes more blocks on its
pipe), and of stderr the beginning and the end are kept. Every wait has a deadline, which holds even
where other processes keep the pipes open.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from loko_ref.conformance.implementations import protocol
from loko_ref.conformance.implementations.protocol import ProtocolError
from loko_ref.errors import printable

LINES = 4
"""Lines of stderr quoted from its beginning, and as many from its end."""

QUOTED = 400
"""Most characters quoted of the beginning, and of the end."""

ENDING = 0.8
"""Seconds to wait until a process tree that is being killed has ended."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_MARK = "LOKO_REF_COMMAND"
_BLOCK = 2**16
_KEPT = 2**13  # bytes of either end of stderr


class Ended(Exception):
    """The command ended, or did not answer in time.

    Parameters
    ----------
    kind : {"crashed", "timeout"}
        Which.
    message : str
        The predicate of a sentence whose subject is the command.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Child:
    """A running command, under a supervisor that ends its process tree (``supervisor.py``).

    Attributes
    ----------
    status : int or None
        Its exit code, negative for a signal, once it has ended.

    Raises
    ------
    OSError
        If the supervisor cannot be started; for the command itself :meth:`ask` raises it.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.status: int | None = None
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._channel, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(self._channel.close)
            self.supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", _SUPERVISOR, str(theirs.fileno()), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, _MARK: self._mark.partition("=")[2]},
            )
            undo.pop_all()
        streams = (self.supervisor.stdin, self.supervisor.stdout, self.supervisor.stderr)
        self._streams = [stream for stream in streams if stream is not None]
        self._in, self._out, self._err = (stream.fileno() for stream in self._streams)
        self._outgoing = memoryview(b"")
        self._line = bytearray()  # read from stdout, not yet taken
        self._searched = 0  # bytes of it known to hold no end of a line
        self._open = {self._out, self._err}
        self._head, self._tail, self._more = b"", b"", False  # stderr
        self._message = b""  # of the supervisor
        self._lost = False  # whether the supervisor ended without one
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        for descriptor in (self._out, self._err, self._channel.fileno()):
            self._selector.register(descriptor, selectors.EVENT_READ)

    # The event loop

    def _wait(self, deadline: float | None) -> bool:
        """Serve the pipes that are ready; return whether the deadline has passed."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return True
        for key, _ in self._selector.select(left):
            if key.fd == self._in:
                self._write()
            elif key.fd == self._channel.fileno():
                self._listen()
            elif key.fd == self._err:
                self._read_errors()
            else:
                self._read()
        return False

    def _close(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        self._open.discard(descriptor)

    def _block(self, descriptor: int) -> bytes | None:
        """Return what a pipe holds, or None if it is empty or closed."""
        try:
            block = os.read(descriptor, _BLOCK)
        except BlockingIOError:
            return None
        if not block:
            self._close(descriptor)
            return None
        return block

    def _read(self) -> bool:
        block = self._block(self._out)
        self._line += block or b""
        return block is not None

    def _read_errors(self) -> bool:
        block = self._block(self._err)
        if block is None:
            return False
        taken = _KEPT - len(self._head)
        self._head += block[:taken]
        rest = self._tail + block[taken:]
        self._more |= len(rest) > _KEPT
        self._tail = rest[-_KEPT:]
        return True

    def _write(self) -> None:
        try:
            written = os.write(self._in, self._outgoing[:_BLOCK])
            self._outgoing = self._outgoing[written:]
        except BlockingIOError:
            return
        except OSError:  # it has closed its stdin, and may answer all the same
            self._outgoing = memoryview(b"")
        if not self._outgoing:
            self._selector.unregister(self._in)

    def _listen(self) -> None:
        """Read the supervisor's message."""
        try:
            block = self._channel.recv(4096)
        except ConnectionError:
            block = b""
        self._message += block
        if not block:
            self._lost = self.status is None
            self._selector.unregister(self._channel)
        elif self._message.endswith(b"\n"):
            word, number = self._message.split()
            if word == b"failed":
                raise OSError(int(number), os.strerror(int(number)))
            self.status = os.waitstatus_to_exitcode(int(number))

    def _send(self, line: bytes) -> None:
        if self._outgoing:
            self._outgoing = memoryview(bytes(self._outgoing) + line)
        else:
            self._outgoing = memoryview(line)
            self._selector.register(self._in, selectors.EVENT_WRITE)

    def _take(self) -> bytes | None:
        """Return the next whole line and remove it from the buffer, or None.

        Raises
        ------
        ProtocolError
            If it is longer than a line may be.
        """
        end = self._line.find(b"\n", self._searched) + 1
        self._searched = len(self._line)
        if not end and self._out not in self._open:
            end = len(self._line)  # the last one, without an end
        if (end or len(self._line)) > protocol.LINE_LIMIT:
            raise ProtocolError(f"a line of more than {protocol.LINE_LIMIT} bytes")
        if not end:
            return None
        line = bytes(memoryview(self._line)[:end])
        self._line = self._line[end:]
        self._searched = 0
        return line

    # The interface

    def ask(self, line: bytes, deadline: float | None) -> bytes:
        """Send a line and return the answer, one line.

        Parameters
        ----------
        deadline : float or None
            Time of ``time.monotonic`` until which to wait.

        Raises
        ------
        Ended
            If there is no answer.
        ProtocolError
            If the answer is too long.
        OSError
            If the command could not be started.
        """
        self._send(line)
        while True:
            answer = self._take()
            if answer is not None:
                return answer
            if self.status is not None or self._lost:
                # the pipe may still hold what it wrote before it ended
                if self._out in self._open and self._read():
                    continue
                if (answer := self._take()) is not None:
                    return answer
                raise Ended("crashed", self._how())
            if self._out not in self._open:
                soon = time.monotonic() + 1
                soon = soon if deadline is None else min(soon, deadline)
                while self.status is None and not self._lost and not self._wait(soon):
                    pass
                raise Ended("crashed", self._how())
            if self._wait(deadline):
                raise Ended("timeout", "did not answer")

    def _how(self) -> str:
        if self._lost:
            return "ended its parent process, loko-ref's supervisor"
        if self.status is None:
            return "closed its stdout"
        if self.status < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-self.status).name}"
        return f"exited with code {self.status}"

    def stop(self, line: bytes, deadline: float) -> bytes:
        """Send a last line, wait for the end, and return the first line received meanwhile."""
        received = bytearray()
        with contextlib.suppress(OSError):
            self._send(line)
            over = False
            while not over:
                over = self.status is not None or self._lost or self._wait(deadline)
                received += self._line[: 400 - len(received)]
                self._line.clear()
            while self._out in self._open and self._read() and time.monotonic() < deadline:
                received += self._line[: 400 - len(received)]
                self._line.clear()
        return bytes(received).partition(b"\n")[0]

    def kill(self) -> None:
        """End the whole process tree, and read what is left on stderr."""
        with contextlib.suppress(OSError):
            self.supervisor.send_signal(signal.SIGCONT)
            self._channel.send(b"end")
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            self.supervisor.wait(timeout=ENDING)
        if self._lost or self.supervisor.returncode:
            self._sweep()
        for _ in range(2**12):  # at most what a pipe holds, in case it is still written to
            if self._err not in self._open or not self._read_errors():
                break
        self._selector.close()
        for stream in self._streams:
            stream.close()

    def _sweep(self) -> None:
        """Kill, by their environment, the processes left by a command that ended its supervisor.

        A process under creation has no readable environment for a moment, so the search ends only
        after three passes in a row that find nothing.
        """
        mark, places = self._mark.encode(), Path("/proc")
        clear, until = 0, time.monotonic() + ENDING
        while places.is_dir() and clear < 3 and time.monotonic() < until:
            found = False
            for entry in filter(str.isdigit, os.listdir(places)):
                with contextlib.suppress(OSError):
                    if mark in (places / entry / "environ").read_bytes().split(b"\0"):
                        found = True
                        os.kill(int(entry), signal.SIGKILL)
            clear = 0 if found else clear + 1
            time.sleep(0.01)

    def errors(self) -> str:
        """Return stderr for a message: all of it where it is short, else its beginning and end."""
        head, tail = self._head, self._tail
        if not self._more:
            head = tail = head + tail
        first, last = (
            [text for line in end.decode("utf-8", "backslashreplace").split("\n")
             if (text := printable(line.strip()))]
            for end in (head, tail)
        )  # fmt: skip
        if not first:
            return ""
        whole = " | ".join(first)
        if not self._more and len(first) <= 2 * LINES and len(whole) <= 2 * QUOTED:
            return f"; stderr: {whole}"
        begins, ends = " | ".join(first[:LINES]), " | ".join(last[-LINES:])
        return f"; stderr begins: {begins[:QUOTED]}; stderr ends: {ends[-QUOTED:]}"
