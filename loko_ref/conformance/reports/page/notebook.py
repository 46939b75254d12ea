"""The report in a notebook: the verdict and a card a fault, without script or extra package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from loko_ref.conformance.diagnose.groups import Group, brief
from loko_ref.conformance.engine import Summary
from loko_ref.conformance.reports.document import failure
from loko_ref.conformance.reports.formulas import pairs, title
from loko_ref.conformance.reports.page.drawing import as_table, matrices
from loko_ref.conformance.reports.text import BLOCKS, reproduce
from loko_ref.errors import printable
from loko_ref.files.pages import own

LONG = 400
"""Characters of a text that comes from the code under test."""


def _safe(text: object, most: int = LONG) -> str:
    return escape(printable(str(text), most))


def _card(one: Group, target: str, first: bool) -> str:
    check, drawn = one.shown, matrices(one.shown)
    leading, *others = pairs(one)
    checks = f"{len(one.checks)} check{'s' if len(one.checks) > 1 else ''}"

    def rows() -> Iterator[tuple[str, str]]:
        if leading.right:
            yield "correct formula", f"<code>{_safe(leading.right)}</code>"
        for other in others:
            yield "and", _safe(other.found)
            yield "correct formula", f"<code>{_safe(other.right)}</code>"
        yield "found", _safe(failure(check))
        yield "case", f"<code>{_safe(check.case.id)}</code>"
        yield "reproduce", f"<code>{_safe(reproduce(target, check.case.id))}</code>"

    listed = "".join(f"<dt>{head}</dt><dd>{text}</dd>" for head, text in rows())
    return (
        f"<details{' open' if first else ''}><summary><b>{_safe(title(one))}</b> ({checks}; "
        f"{_safe(brief(check), 200)})</summary><dl>{listed}</dl>"
        f"{'' if drawn is None else as_table(drawn)}</details>"
    )


def as_cards(
    target: str, summary: Summary, groups: Sequence[Group], others: Sequence[object] = ()
) -> str:
    """Build the fragment.

    Parameters
    ----------
    others : sequence
        Further notes, one line each.
    """
    style = own("notebook.css", __package__) + own("matrices.css", __package__)
    rest = summary.text.removeprefix(summary.headline)
    kind = {"failed": "failed", "passed": "passed", "as expected": "passed"}
    verdict = f'<b class="{kind.get(summary.verdict, "none")}">{summary.headline}</b>{escape(rest)}'
    lines = list(others)
    if len(groups) > BLOCKS:
        lines.append(f"and {len(groups) - BLOCKS} more kinds of failure")
    cards = "".join(_card(one, target, one is groups[0]) for one in groups[:BLOCKS])
    return (
        f'<div class="loko-ref"><style>{style}</style>'
        f'<p class="verdict">{verdict} {_safe(target, 200)}</p>'
        f"{cards}{''.join(f'<p>{_safe(line)}</p>' for line in lines)}</div>"
    ).replace("\n", " ")
