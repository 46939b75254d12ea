"""Every derivation label: its places in code and tests, and the mistakes that it is seen by."""

import re
from pathlib import Path

from loko_ref.files.derivations import LABEL, derivations
from loko_ref.files.shipped import shipped
from pages.catalogue import MISTAKES
from pages.markdown import code, page, table, text

CODE = re.compile(rf"^\| ({LABEL}) \|.*\| ([^|]+) \|$", re.MULTILINE)
TESTS = re.compile(r"\btests/[\w/]+\.py")


def write(source: Path) -> None:
    """Write the table."""
    places = dict(CODE.findall((shipped("derivations") / "README.md").read_text("utf-8")))
    rows = [
        (
            label,
            text(one.title),
            ", ".join(map(code, places[label].split(", "))),
            ", ".join(map(code, dict.fromkeys(TESTS.findall(one.parts["Check"])))),
            ", ".join(f"[{text(key)}](mistakes/{key}.md)" for key in MISTAKES[label]),
        )
        for label, one in derivations().items()
    ]
    words = """Where each formula stands in the code, where it is tested, and which known mistakes
are first seen in a quantity that it defines.\n"""
    head = ("label", "title", "code", "tests", "mistakes")
    page(source / "labels.md", "From label to code, tests and mistakes", words, table(head, rows))
