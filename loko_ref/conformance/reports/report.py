"""What a verification found, for a notebook, for a test, and as JSON, XML or HTML."""

from __future__ import annotations

import json as text_of
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loko_ref.conformance.diagnose.baseline import Changes
from loko_ref.conformance.diagnose.coverage import Coverage, citation, coverage
from loko_ref.conformance.diagnose.groups import Group, group
from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import FAILED, UNEXPECTED_PASS, Check, Summary, outcome, summarise
from loko_ref.conformance.reports.document import as_json, failure
from loko_ref.conformance.reports.junit import as_xml
from loko_ref.conformance.reports.text import BLOCKS, failures, lines
from loko_ref.errors import extras, printable
from loko_ref.files.writing import write_bytes

if TYPE_CHECKING:
    from rich.console import Console


class VerificationError(AssertionError):
    """An implementation failed its verification, or nothing of it ran; the text is the report."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """A check that failed, or that passed although it was expected to fail.

    Attributes
    ----------
    case : str
        The case's id: ``operation/case/dtype``.
    quantity : str or None
        The first output in dataflow order that is wrong; None where no output is to blame.
    index : tuple of int or None
        Its first wrong element; of a run the step comes first.
    expected, got : float, str or None
        The element's values; of a wrong form its shape or dtype.
    wrong : tuple of str
        Every output that is wrong given those before it, in dataflow order.
    ratio : float or None
        Error over tolerance of the element, infinite where it is not finite.
    mistake : str or None
        Id of the known mistake that reproduces it best, as `loko-ref mutants` lists them.
    text : str
        All of this in words.
    """

    case: str
    quantity: str | None
    index: tuple[int, ...] | None
    expected: float | str | None
    got: float | str | None
    ratio: float | None
    mistake: str | None
    text: str
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.case}: {self.text}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Report:
    """What a verification found.

    Attributes
    ----------
    target : str
        What was verified, as the command line names it.
    checks : tuple of Check
        The outcome of every case.
    notes : tuple of str
        Remarks on the implementation.
    mistakes : mapping of str to sequence of Mistake
        Case id -> known mistakes that reproduce the failure, most likely first.
    expected : mapping of str to str
        Case id -> why it is expected to fail.
    changes : Changes or None
        What changed since an earlier report, where one was given.
    precision : mapping of str to str
        The precision that the code states, quantity -> format; that of "" is all others'.
    """

    target: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    mistakes: Mapping[str, list[Mistake]] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)
    changes: Changes | None = None
    precision: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def coverage(self) -> Coverage:
        """What the run could reveal: known mistakes, and combinations of LoKO's options."""
        return coverage(self.checks)

    @property
    def citation(self) -> str:
        """What may be cited: version, the catalogue's digest, checks and combinations of options.

        Empty where nothing ran. The whole digest is in :attr:`document`.
        """
        return citation(self.coverage, self.summary)

    @cached_property
    def _closing(self) -> list[str]:
        """Lines that stand before the verdict."""
        found = [] if self.changes is None else list(self.changes.lines())
        if self.summary.ran:
            found += [f"not revealed: {self.coverage.text}"] if self.coverage.text else []
            found.append(f"cite: {self.citation}")
        return found

    @cached_property
    def summary(self) -> Summary:
        """The counts and the verdict."""
        return summarise(self.checks, self.expected)

    @property
    def passed(self) -> bool:
        """Whether something ran, and all that ran passed or failed as expected."""
        return self.summary.exit_code == 0

    @cached_property
    def failures(self) -> tuple[Failure, ...]:
        """What makes the verdict a failure, in the order run."""
        return tuple(one for check in self.checks if (one := self._failure(check)) is not None)

    def _failure(self, check: Check) -> Failure | None:
        key = check.case.id
        found = outcome(key, check.status, self.expected)
        if found not in (FAILED, UNEXPECTED_PASS):
            return None
        first = check.divergence or check.finding
        named = self.mistakes.get(key)
        return Failure(
            case=key,
            quantity=None if first is None else first.quantity,
            index=None if first is None else first.index,
            expected=None if first is None else first.expected,
            got=None if first is None else first.got,
            ratio=None if check.divergence is None else check.divergence.ratio,
            mistake=named[0].mutant.id if named else None,
            wrong=tuple(d.quantity for d in check.divergences),
            text=failure(check)
            if found == FAILED
            else f"passed, but was expected to fail: {self.expected[key]}",
        )

    @cached_property
    def _groups(self) -> list[Group]:
        return group([c for c in self.checks if c.case.id not in self.expected], self.mistakes)

    def __repr__(self) -> str:
        """Return the verdict, and the failure to look at first."""
        head = f"{self.summary.text}  ({printable(self.target, 200)})"
        if self._groups:
            one = self._groups[0]
            mistake = (
                "" if one.mistake is None else f"\n{one.mistake.mutant.id}: {one.mistake.text}"
            )
            return f"{head}\n{one.shown.case.id}: {failure(one.shown)}{mistake}"
        return "\n".join([head, *map(str, self.failures[:1])])

    def _repr_html_(self) -> str:
        """Return the verdict and a card of each kind of failure, for a notebook.

        Text and lines take the colours of the page around them, light or dark.
        """
        from loko_ref.conformance.reports.page.notebook import as_cards

        others = [str(one) for one in self.failures if one.case in self.expected][:BLOCKS]
        others += [f"note: {note}" for note in self.notes]
        return as_cards(self.target, self.summary, self._groups, others)

    def raise_if_failed(self) -> None:
        """Raise where something failed unexpectedly, or nothing ran; for tests.

        Raises
        ------
        VerificationError
            An AssertionError; its text describes each kind of failure: the first quantity that is
            off, what reproduces it, and the known mistake.
        """
        if self.passed:
            return
        found = [f"{self.summary.text}  ({self.target})"]
        found += [head + rest for _, head, rest in failures(self.target, self._groups)]
        found += [str(one) for one in self.failures if one.case in self.expected]
        declined = {str(check.reason) for check in self.checks if check.reason is not None}
        if not self.summary.ran:
            found += sorted(declined)
        raise VerificationError("\n".join([*found, *(f"note: {note}" for note in self.notes)]))

    @property
    def text(self) -> str:
        """The whole report in words, as the command prints it around its table."""
        return "\n".join(
            head + rest for _, head, rest in lines(*self._content, closing=self._closing)
        )

    @property
    def document(self) -> dict[str, Any]:
        """The report ``loko-ref/verify/2``; `loko-ref schema verify` describes it."""
        return as_json(
            *self._content, found=self.coverage, changes=self.changes, precision=self.precision
        )

    @property
    def _content(
        self,
    ) -> tuple[
        str, tuple[Check, ...], tuple[str, ...], Mapping[str, list[Mistake]], Mapping[str, str]
    ]:
        return self.target, self.checks, self.notes, self.mistakes, self.expected

    def to_json(self) -> str:
        """Return :attr:`document` as text."""
        return text_of.dumps(self.document, indent=1, allow_nan=False) + "\n"

    def to_junit(self) -> bytes:
        """Return the report as JUnit XML."""
        return as_xml(self.target, self.checks, self.mistakes, self.expected, self.notes)

    def to_html(self) -> str:
        """Return the report as one page, with a map of the errors of each failure.

        Raises
        ------
        MissingExtraError
            If the extra ``[cli]`` is not installed.
        """
        extras.load("jinja2", "the HTML report")
        from loko_ref.conformance.reports import page

        return page.as_html(*self._content, closing=self._closing)

    def write(
        self,
        *,
        json: str | os.PathLike[str] | None = None,
        junit: str | os.PathLike[str] | None = None,
        html: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write the report to files, each whole or not at all.

        Parameters
        ----------
        json, junit, html : path-like, optional
            Where to write it in that form.

        Raises
        ------
        InputError
            If a file cannot be written.
        MissingExtraError
            If `html` is given and the extra ``[cli]`` is not installed; nothing is written then.
        """
        page = None if html is None else self.to_html().encode("utf-8", "replace")
        if json is not None:
            write_bytes(json, self.to_json().encode(), "json")
        if junit is not None:
            write_bytes(junit, self.to_junit(), "junit")
        if html is not None and page is not None:
            write_bytes(html, page, "html")

    def print(self, console: Console | None = None, *, verbose: bool = False) -> None:
        """Print the report as the command does: verdict, first fault, a table by operation.

        Parameters
        ----------
        console : rich.console.Console, optional
            Where; the terminal by default.
        verbose : bool
            Whether more kinds of failure are described in full, every operation has its row, and
            tolerances are explained: all of :attr:`text`.

        Raises
        ------
        MissingExtraError
            If the extra ``[cli]`` is not installed.
        """
        rich = extras.load("rich.console", "the report on the terminal")
        from loko_ref.conformance.reports.terminal import print_report

        console = console or rich.Console(emoji=False)
        print_report(console, *self._content, closing=self._closing, verbose=verbose)
