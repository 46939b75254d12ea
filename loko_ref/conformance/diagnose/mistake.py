"""A mistake as it is named: a known one, or a formula found."""

from __future__ import annotations

from dataclasses import dataclass

from loko_ref.conformance.mistakes.registry import Changes, Mutant

__all__ = ["Mistake"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """A mutant that reproduces a failed check.

    Attributes
    ----------
    mutant : Mutant
        The mistake.
    size : float or None
        Its fitted size.
    ratio : float
        Largest error against the mutant's outputs, in tolerances.
    explained, failed : int
        Failed checks of the run that it reproduces, of how many.
    contradicted : int
        Passed checks that it would have failed.
    alone : bool
        Whether the check does not bear its size out: some size always meets one number.
    sharp : bool
        Whether it gives the first quantity that is off to the oracle's own tolerance: rounding
        does that by no chance.
    alike : tuple of str
        Ids of mutants that reproduce the check too, and that nothing in the run tells from it; of
        a formula found by search, their equations.
    quantity : str
        Where it was judged from its parents: the quantity that it explains; "" else.
    """

    mutant: Mutant
    size: float | None
    ratio: float
    explained: int = 0
    failed: int = 0
    contradicted: int = 0
    alone: bool = False
    sharp: bool = False
    alike: tuple[str, ...] = ()
    quantity: str = ""

    @property
    def equation(self) -> str:
        """What the code computes: an equation, or the known mistake's name."""
        return self.mutant.name

    def changes(self) -> Changes:
        """Return the formulas of the table that it replaces, by name: they reproduce it."""
        return self.mutant.changes(self.size)

    @property
    def text(self) -> str:
        """Name it, with its size."""
        size = "" if self.size is None else f", size about {self.size:.3g}"
        return f"{self.mutant.name}{size}"
