"""The report as JUnit XML, which continuous integration reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from loko_ref.conformance.diagnose.groups import group
from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import (
    EXPECTED_FAILURE,
    FAILED,
    IMPRECISE,
    UNEXPECTED_PASS,
    UNSUPPORTED,
    Check,
    outcome,
    summarise,
)
from loko_ref.conformance.reports.document import failure
from loko_ref.conformance.reports.text import amplified, command, describe, imprecise

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold."""


def _text(value: str) -> str:
    return _FORBIDDEN.sub("?", value)


def as_xml(
    target: str,
    checks: Sequence[Check],
    mistakes: Mapping[str, Sequence[Mistake]],
    expected: Mapping[str, str],
    notes: Sequence[str] = (),
) -> bytes:
    """Build the document: one test case per check, and the verdict among the suite's properties.

    Declined checks and expected failures are skipped ones, unexpected passes are failures; what is
    imprecise passes, and its output states it. A run
    in which nothing ran has one test case more, which is an error.
    """
    suite = ElementTree.Element("testsuite", name=_text(command(target)))
    summary = summarise(checks, expected)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("verdict", summary.text), *(("note", note) for note in notes)):
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    counts = {"tests": len(checks), "failures": 0, "errors": 0, "skipped": 0}
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=check.case.operation.name, name=check.case.id
        )
        reason = expected.get(check.case.id)
        found = outcome(check.case.id, check.status, expected)
        if found == UNSUPPORTED:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=_text(str(check.reason)))
        elif found == EXPECTED_FAILURE:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=_text(f"expected to fail: {reason}"))
        elif found == FAILED:
            counts["failures"] += 1
            message = _text(failure(check))
            node = ElementTree.SubElement(case, "failure", message=message)
            (one,) = group([check], mistakes)
            node.text = _text("\n".join(describe(one, target)))
        elif found == UNEXPECTED_PASS:
            counts["failures"] += 1
            message = _text(f"passed, but was expected to fail: {reason}")
            ElementTree.SubElement(case, "failure", message=message)
        elif found == IMPRECISE:
            ElementTree.SubElement(case, "system-out").text = _text(
                f"imprecise: {imprecise(check)}"
            )
        if check.amplified is not None:
            ElementTree.SubElement(case, "system-out").text = _text(amplified(check))
    if not summary.ran:
        counts |= {"tests": len(checks) + 1, "errors": 1}
        case = ElementTree.SubElement(suite, "testcase", classname="loko-ref", name="verify")
        ElementTree.SubElement(case, "error", message=summary.text)
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
