"""Every derivation label: its places in code and tests, and the mistakes that it is seen by."""

import re
from pathlib import Path

from pages.catalogue import MISTAKES
from pages.markdown import code, page, table, text

DERIVATIONS = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([A-Z]{2,}-\d+) \| ([^|]+) \| \[[^|]+ \| ([^|]+) \|$", re.MULTILINE)
TESTS = re.compile(r"\btests/[\w/]+\.py")


def write(source: Path) -> None:
    """Write the table."""
    sections: dict[str, str] = {}
    for file in DERIVATIONS.glob("*.md"):
        parts = re.split(r"^### \[([A-Z]{2,}-\d+)\]", file.read_text("utf-8"), flags=re.MULTILINE)
        sections |= dict(zip(parts[1::2], parts[2::2], strict=True))
    rows = []
    for label, title, where in ROW.findall((DERIVATIONS / "README.md").read_text("utf-8")):
        tests = dict.fromkeys(TESTS.findall(sections[label].partition("**Check:**")[2]))
        mistakes = ", ".join(f"[{text(key)}](mistakes/{key}.md)" for key in MISTAKES[label])
        places = ", ".join(map(code, where.split(", ")))
        rows.append((label, text(title), places, ", ".join(map(code, tests)), mistakes))
    words = """Where each formula stands in the code, where it is tested, and which known mistakes
are first seen in a quantity that it defines.\n"""
    head = ("label", "title", "code", "tests", "mistakes")
    page(source / "labels.md", "From label to code, tests and mistakes", words, table(head, rows))
