"""Exact facts of LoKO and LTE, as ready-made tests of an implementation of one's own.

In one line each way::

    loko-ref properties my_loko.py

    @loko_ref.properties.parametrize(IMPLEMENTATION)    # pytest: one test for each property
    def test_property(holds):
        holds()

    loko_ref.properties.check_all(IMPLEMENTATION).raise_if_failed()

A property compares an implementation with itself or with a bound; it needs no expected value. It
names its derivation and its domain, and how far two right answers may be apart is computed from the
inputs, as the kit's tolerances are. ``loko-ref properties --list`` prints the table,
``--matrix`` which known mistake each property finds.
"""

from loko_ref.errors import MissingExtraError

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise MissingExtraError("loko_ref.properties", "hypothesis", "test") from error

from loko_ref.properties.registry import all_properties
from loko_ref.properties.running import (
    PROFILES,
    Outcome,
    Results,
    check,
    check_all,
    parametrize,
    select,
)
from loko_ref.properties.trial import Problem, Property

__all__ = [
    "PROFILES",
    "Outcome",
    "Problem",
    "Property",
    "Results",
    "all_properties",
    "check",
    "check_all",
    "parametrize",
    "select",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
