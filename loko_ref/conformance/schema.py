"""The JSON Schemas of what this package writes, as data of the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from loko_ref.errors import unknown_option

__all__ = ["NAMES", "load"]

NAMES = ("verify", "mutants", "calibration", "vectors")
"""Of the report, the mutants' list or score, their calibration, the golden vectors' manifest."""


def load(name: str) -> dict[str, Any]:
    """Read a schema.

    Parameters
    ----------
    name : str
        One of ``NAMES``.

    Raises
    ------
    InputError
        If there is no such schema.
    """
    if name not in NAMES:
        raise unknown_option("NAME", name, NAMES)
    place = files("loko_ref.conformance").joinpath("schemas", f"{name}.json")
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found
