"""The conformance kit: is an implementation right, and which quantity goes wrong first?

:func:`verify` checks an implementation and returns a :class:`Report`; :func:`verify_recording`
checks a recorded run, :func:`verify_answers` outputs computed elsewhere; :func:`agree` and
:func:`check` judge a function on user-supplied inputs; :func:`select` lists the cases,
``OPERATIONS`` what an implementation may offer.

Inside: ``catalogue`` holds the operations, ``cases`` their inputs, ``oracle`` the expected numbers,
``implementations`` what is under test, ``judge`` tolerance and comparison, ``mistakes`` the known
ones, ``diagnose`` the search for one, ``reports`` the output.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loko_ref.conformance.cases.registry import Case, select
    from loko_ref.conformance.catalogue.registry import OPERATIONS
    from loko_ref.conformance.reports.report import Failure, Report, VerificationError
    from loko_ref.conformance.user_inputs import agree, check, user_case
    from loko_ref.conformance.verification import verify, verify_answers, verify_recording

__all__ = [
    "OPERATIONS",
    "Case",
    "Failure",
    "Report",
    "VerificationError",
    "agree",
    "check",
    "select",
    "user_case",
    "verify",
    "verify_answers",
    "verify_recording",
]

_HOMES = {
    "catalogue.registry": ("OPERATIONS",),
    "cases.registry": ("Case", "select"),
    "reports.report": ("Failure", "Report", "VerificationError"),
    "user_inputs": ("agree", "check", "user_case"),
    "verification": ("verify", "verify_answers", "verify_recording"),
}
"""Module -> the public names that it holds, loaded when first asked for."""


def __getattr__(name: str) -> object:
    """Load a public name, or a module of the kit."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"loko_ref.conformance.{home}"), name)
    raise AttributeError(f"module 'loko_ref.conformance' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
