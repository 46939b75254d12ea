"""Every label that the code cites is defined once in derivations/, and the other way round."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DERIVATIONS = ROOT / "derivations"
CODE = (ROOT / "loko_ref", ROOT / "examples")

LABEL = r"[A-Z]{2,}-\d+"
HEADING = re.compile(rf"^### \[({LABEL})\] (\S.*)$", re.MULTILINE)
# [KAL-2] or [KAL-2, DIAG-1], also over a line's end; no subscript such as a[UTF-8]
CITATION = re.compile(rf"(?<![\w)\]])\[({LABEL}(?:[,;\s#]+{LABEL})*)\]")
FIELDS = (
    "Statement",
    "Assumptions",
    "Derivation",
    "Shapes",
    "Source",
    "Difference from the source",
    "Check:",
)


def sections() -> list[tuple[str, str, str, str]]:
    """(label, title, file name, body) of every labelled section."""
    found = []
    for path in sorted(DERIVATIONS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        heads = list(HEADING.finditer(text))
        ends = [*(head.start() for head in heads), len(text)][1:]
        for head, end in zip(heads, ends, strict=True):
            found.append((head[1], head[2].strip(), path.name, text[head.end() : end]))
    return found


def cited(*roots: Path) -> dict[str, set[str]]:
    """Label -> the files under the roots that cite it in square brackets."""
    where: dict[str, set[str]] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            for group in CITATION.findall(path.read_text(encoding="utf-8")):
                for label in re.findall(LABEL, group):
                    where.setdefault(label, set()).add(path.relative_to(root.parent).as_posix())
    return where


SECTIONS = sections()
DEFINED = {label for label, *_ in SECTIONS}


def test_citations_are_found_in_every_form(tmp_path: Path) -> None:
    text = (
        "# (m, m)  [KAL-2]\n# [OBS-4, OBS-6]\n# [NOISE-2,\n# LAY-10]\nx[AB-1]\nKAL-9\nlosses[N-1]\n"
    )
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    assert set(cited(tmp_path)) == {"KAL-2", "OBS-4", "OBS-6", "NOISE-2", "LAY-10"}


def test_each_label_is_defined_once() -> None:
    assert SECTIONS, f"no labelled section in {DERIVATIONS}"
    repeated = {label: k for label, k in Counter(s[0] for s in SECTIONS).items() if k > 1}
    assert not repeated


def test_each_cited_label_is_defined() -> None:
    undefined = {label: files for label, files in cited(*CODE).items() if label not in DEFINED}
    assert not undefined


def test_each_defined_label_is_cited() -> None:
    uncited = sorted(DEFINED - cited(*CODE).keys())
    assert not uncited


@pytest.mark.parametrize(("label", "body"), [(s[0], s[3]) for s in SECTIONS])
def test_each_section_is_complete(label: str, body: str) -> None:
    places = [body.find(f"**{name}") for name in FIELDS]
    missing = [name for name, at in zip(FIELDS, places, strict=True) if at < 0]
    assert not missing, label
    assert places == sorted(places), f"{label}: the parts stand in another order"


@pytest.mark.parametrize("path", sorted(DERIVATIONS.glob("*.md")), ids=lambda path: path.name)
def test_labels_mentioned_in_the_derivations_are_defined(path: Path) -> None:
    families = {label.split("-")[0] for label in DEFINED}
    mentioned = set(re.findall(rf"\b{LABEL}\b", path.read_text(encoding="utf-8")))
    undefined = {m for m in mentioned if m.split("-")[0] in families} - DEFINED
    assert not undefined


def test_index_lists_every_label_with_its_title_and_file() -> None:
    index = (DERIVATIONS / "README.md").read_text(encoding="utf-8")
    rows = {
        (m[1], m[2].strip(), m[3])
        for m in re.finditer(rf"^\| ({LABEL}) \| ([^|]+) \| \[([\w.]+)\]", index, re.MULTILINE)
    }
    assert rows == {(label, title, name) for label, title, name, _ in SECTIONS}


def test_index_names_files_that_cite_the_label() -> None:
    index = (DERIVATIONS / "README.md").read_text(encoding="utf-8")
    where = cited(*CODE)
    wrong = {}
    for label, places in re.findall(rf"^\| ({LABEL}) \| .* \| ([^|]+) \|$", index, re.MULTILINE):
        named = {place.strip() for place in places.split(",")}
        stale = {
            place
            for place in named
            if not any(
                f == place or (place.endswith("/") and f.startswith(place))
                for f in where.get(label, ())
            )
        }
        if stale:
            wrong[label] = stale
    assert not wrong
