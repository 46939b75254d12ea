"""``loko-ref`` in the test's own process: what starts an interpreter for it tests the process."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from loko_ref.cli import main


def loko_ref(*words, columns=200):
    """Run the command with these words; what comes back is as of `subprocess.run`."""
    words = [str(word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["loko-ref", *words]),
        mock.patch.dict(os.environ, COLUMNS=str(columns)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    assert isinstance(code, int), code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
