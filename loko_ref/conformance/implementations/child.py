"""One run of a command: a line out, a line in, and an end of its whole process tree.

Everything that is read is bounded: of stdout one line is taken and no more until it has been used
(a command that writes on waits in its pipe), of stderr the two ends are kept. Every wait has a
deadline, and holds it whoever has the pipes open.
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

__all__ = ["Child", "Ended"]

LINES = 4
"""Lines of stderr that are quoted from its beginning, and as many from its end."""

QUOTED = 400
"""Characters that either end may take."""

ENDING = 0.8
"""Seconds that are waited for the end of a tree that is being killed."""

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
        Completes the sentence that begins with the command.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Child:
    """One run of a command, under a supervisor that ends its tree (``supervisor.py``).

    Parameters
    ----------
    arguments : list of str
        The command and its arguments.

    Attributes
    ----------
    status : int or None
        Its exit code, negative for a signal, once it has ended.

    Raises
    ------
    OSError
        If the supervisor cannot be started; a command that cannot be is told by :meth:`ask`.
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
        self._line = bytearray()  # what was read of stdout
        self._searched = 0  # bytes of it that hold no end of a line
        self._open = {self._out, self._err}
        self._head, self._tail, self._more = b"", b"", False  # stderr
        self._told = b""
        self._lost = False  # whether the supervisor is gone without a word
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        for descriptor in (self._out, self._err, self._channel.fileno()):
            self._selector.register(descriptor, selectors.EVENT_READ)

    # The event loop

    def _wait(self, deadline: float | None) -> bool:
        """Do what can be done with the pipes; return whether the deadline has passed."""
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
        """Read what a pipe holds; None where there is nothing to be had of it now."""
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
        except OSError:  # it has closed its stdin: whether it answers all the same is seen
            self._outgoing = memoryview(b"")
        if not self._outgoing:
            self._selector.unregister(self._in)

    def _listen(self) -> None:
        """Take what the supervisor says."""
        try:
            block = self._channel.recv(4096)
        except ConnectionError:
            block = b""
        self._told += block
        if not block:
            self._lost = self.status is None
            self._selector.unregister(self._channel)
        elif self._told.endswith(b"\n"):
            word, number = self._told.split()
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
        """Take a whole line, if there is one.

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

    # What one does with it

    def ask(self, line: bytes, deadline: float | None) -> bytes:
        """Send a line and wait for one.

        Parameters
        ----------
        line : bytes
            With its end.
        deadline : float or None
            Time of ``time.monotonic`` up to which to wait.

        Raises
        ------
        Ended
            If there is no answer.
        ProtocolError
            If there is a line that is too long.
        OSError
            If the command could not be started.
        """
        self._send(line)
        while True:
            answer = self._take()
            if answer is not None:
                return answer
            if self.status is not None or self._lost:
                # what it wrote before its end is in the pipe
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
            return "ended the process that loko-ref keeps beside it, its parent"
        if self.status is None:
            return "closed its stdout"
        if self.status < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-self.status).name}"
        return f"exited with code {self.status}"

    def stop(self, line: bytes, deadline: float) -> bytes:
        """Send a last line and wait for the end; return the first line that came, if any did."""
        came = bytearray()
        with contextlib.suppress(OSError):
            self._send(line)
            over = False
            while not over:
                over = self.status is not None or self._lost or self._wait(deadline)
                came += self._line[: 400 - len(came)]
                self._line.clear()
            while self._out in self._open and self._read() and time.monotonic() < deadline:
                came += self._line[: 400 - len(came)]
                self._line.clear()
        return bytes(came).partition(b"\n")[0]

    def kill(self) -> None:
        """End the whole tree, and keep what stood on stderr."""
        with contextlib.suppress(OSError):
            self.supervisor.send_signal(signal.SIGCONT)
            self._channel.send(b"end")
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on, without us
            self.supervisor.wait(timeout=ENDING)
        if self._lost or self.supervisor.returncode:
            self._sweep()
        for _ in range(2**12):  # at most what the pipe holds, were it still written to
            if self._err not in self._open or not self._read_errors():
                break
        self._selector.close()
        for stream in self._streams:
            stream.close()

    def _sweep(self) -> None:
        """Kill what the command left behind when it ended its supervisor, by its environment.

        A process that is just being made shows no environment for a moment: nothing is left where
        three looks in turn find nothing.
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
        """Quote stderr: all of it where it is short, else how it begins and how it ends."""
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
