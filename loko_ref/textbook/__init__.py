"""Every quantity by its plain formula: the second route that the oracle is held to."""

from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.lte_state import LTE_FORMULAS
from loko_ref.textbook.optimizers import DESCENT

__all__ = ["FORMULA_TABLE"]

FORMULA_TABLE = {**FORMULAS, **DESCENT, **LTE_FORMULAS}
"""Every plain formula by name."""
