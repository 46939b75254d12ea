"""The command line: ``loko-ref COMMAND``; each command stands in a module of its own.

Exit codes: 0 all well, 1 the command ran and found something wrong, 2 it could not run.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the ``loko-ref`` command; report what cannot be run as one sentence, exit code 2."""
    from loko_ref.errors import BackendError, InputError, MissingExtraError, NumericalError

    try:
        from loko_ref.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(MissingExtraError("the command line", error.name, "cli"), file=sys.stderr)
        raise SystemExit(2) from None
    try:
        app()
    except (BackendError, InputError, MissingExtraError, NumericalError) as error:
        print(f"loko-ref: {error}", file=sys.stderr)
        raise SystemExit(2) from None
