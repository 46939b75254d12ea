"""The derivations by label: title, statement and the parts that follow, as ``derivations/`` has it.

Read from the checkout, or from the wheel's copy; nothing is fetched.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from loko_ref.errors import InputError, closest, shown
from loko_ref.files.shipped import shipped

LABEL = r"[A-Z]{2,}-\d+"
"""Regular expression of a label."""

_HEADING = re.compile(rf"^### \[({LABEL})\] (\S.*)$", re.MULTILINE)
_PART = re.compile(r"^\*\*([A-Z][\w ]*?)[.:]\*\*\s*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """One labelled section of ``derivations/``."""

    # such as `KAL-2` and `Innovation covariance and gain (textbook update)`
    label: str
    title: str
    file: str  # the page that it stands on, such as `kalman.md`
    text: str  # the whole section below its heading, Markdown with TeX between dollar signs

    @property
    def parts(self) -> dict[str, str]:
        """The section by part: Statement, Assumptions, Derivation, Shapes, ..., Check."""
        heads = list(_PART.finditer(self.text))
        ends = [*(head.start() for head in heads), len(self.text)][1:]
        return {
            head[1]: self.text[head.end() : end].strip()
            for head, end in zip(heads, ends, strict=True)
        }

    @property
    def statement(self) -> str:
        """What holds, without the derivation."""
        return self.parts["Statement"]


@functools.cache
def derivations() -> Mapping[str, Derivation]:
    """Return every derivation by its label, in the order of the index.

    Examples
    --------
    >>> derivations()["KAL-2"].title
    'Innovation covariance and gain (textbook update)'
    """
    folder = shipped("derivations")
    found = {}
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        heads = list(_HEADING.finditer(text))
        ends = [*(head.start() for head in heads), len(text)][1:]
        for head, end in zip(heads, ends, strict=True):
            body = text[head.end() : end].strip()
            found[head[1]] = Derivation(
                label=head[1], title=head[2].strip(), file=path.name, text=body
            )
    index = (folder / "README.md").read_text(encoding="utf-8")
    order = re.findall(rf"^\| ({LABEL}) \|", index, re.MULTILINE)
    return MappingProxyType({label: found[label] for label in order})


def derivation(label: str) -> Derivation:
    """Return the derivation of a label, in capitals or not.

    Raises
    ------
    InputError
        If there is no such label; it names the closest.

    Examples
    --------
    >>> derivation("kal-2").file
    'kalman.md'
    """
    known = derivations()
    found = known.get(label.upper())
    if found is None:
        near = closest(label.upper(), known)
        raise InputError(
            "LABEL",
            shown(label),
            "a label of the derivations, such as KAL-2 ('loko-ref explain labels' lists them)",
            f"a typing error; the closest is {near}" if near else "another version's label",
        )
    return found
