"""Every derivation label: where it is computed and tested, and the known mistakes of it."""

from pathlib import Path

from loko_ref.explain.label_matrix import matrix
from pages.markdown import code, page, text

WORDS = """Where each formula stands in the code, where it is tested, and which known mistakes
change it, or why none does. `loko-ref explain labels --matrix` prints the same.\n"""


def write(source: Path) -> None:
    """Write the list."""
    entries = []
    for row in matrix():
        mistakes = ", ".join(f"[{text(key)}](mistakes/{key}.md)" for key in row.mistakes)
        entries += [
            f"{row.label}: {text(row.title)}",
            f": Code: {', '.join(map(code, row.code))}\n",
            f"  Tests: {', '.join(map(code, row.tests))}\n",
            f"  Mistakes: {mistakes or 'none: ' + text(row.reason)}\n",
        ]
    page(source / "labels.md", "From label to code, tests and mistakes", WORDS, *entries)
