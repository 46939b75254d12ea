"""The command line: ``loko-ref COMMAND``; each command stands in a module of its own.

Exit codes: 0 all well, 1 the command ran and found something wrong, 2 it could not run, 130 it was
interrupted (Ctrl-C; 143 by SIGTERM), 141 its reader went away (as `head` does), which is not an
error; nothing is printed.
"""

from __future__ import annotations

import contextlib
import os
import sys

from loko_ref import interrupt

__all__ = ["main"]

BROKEN_PIPE = 141
"""128 + SIGPIPE: what a shell reports of a command that a closed pipe ended."""


def _hush() -> None:
    """Discard what is still buffered, which the interpreter would flush at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def main() -> None:
    """Run the ``loko-ref`` command; report what cannot be run as one sentence, exit code 2."""
    with interrupt.handled():  # before NumPy, SciPy and Typer are imported
        _run()


def _run() -> None:
    from loko_ref.errors import BackendError, InputError, MissingExtraError, NumericalError

    with contextlib.suppress(AttributeError):  # a stand-in for stdout that has no encoding
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from loko_ref.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        missing = MissingExtraError("the command line", package, "cli")
        print(f"loko-ref: {missing}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        app(prog_name="loko-ref")  # by whatever it was started: completion goes by the name
    except (BackendError, InputError, MissingExtraError, NumericalError) as error:
        text = interrupt.after(error) if isinstance(error, InputError) else error
        print(f"loko-ref: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except MemoryError as error:
        detail = f" ({error})" if str(error) else ""
        text = f"not enough memory{detail}; take a smaller network, batch, rank or number of heads"
        print(f"loko-ref: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        _hush()
        raise SystemExit(BROKEN_PIPE) from None
    except SystemExit as stop:  # click and rich turn a broken pipe into an exit with code 1
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        _hush()
        raise SystemExit(BROKEN_PIPE) from None
