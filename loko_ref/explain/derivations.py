"""The derivations by label, for the student: see :mod:`loko_ref.files.derivations`."""

from loko_ref.files.derivations import LABEL, Derivation, derivation, derivations

__all__ = ["LABEL", "Derivation", "derivation", "derivations"]
