"""Commands of the written pages, run while the site is built, with what they print.

A block ``sh run`` is run and its output set below it; a block ``LANGUAGE file=NAME`` is a file that
such a command finds. On pages that are read as they are, both are ordinary blocks.
"""

import re
import tempfile
from pathlib import Path

from pages.gallery import run
from pages.markdown import block

FENCE = re.compile(r"^```(\w+) (run|file=(\S+))\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def performed(words: str) -> str:
    """Return a page with the output of its commands."""
    with tempfile.TemporaryDirectory() as folder:

        def do(found: re.Match[str]) -> str:
            language, _, name, body = found.groups()
            if name:
                (Path(folder) / name).write_text(body, encoding="utf-8")
                return f"Put this into `{name}`:\n\n{block(body, language)}"
            return f"{block(body, language)}\n{block(run(body, folder))}"

        return FENCE.sub(do, words)
