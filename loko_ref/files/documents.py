"""The JSON documents written by this package: their first keys, and their JSON Schemas.

Every document begins with ``schema`` (its name and version), ``versions`` (of this package, NumPy
and Python) and ``platform``, which :func:`document` adds. The schemas are data files of the
package.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from loko_ref import __version__
from loko_ref.errors import unknown_option

SCHEMAS = {
    "verify": "loko-ref/verify/2",
    "mutants": "loko-ref/mutants/1",
    "generated": "loko-ref/generated/1",
    "calibration": "loko-ref/calibration/3",
    "vectors": "loko-ref/vectors/3",
    "case": "loko-ref/case/1",
    "certify": "loko-ref/certify/1",
    "train": "loko-ref/train/2",
    "lte": "loko-ref/lte/1",
    "lte-details": "loko-ref/lte-details/1",
    "compare-online": "loko-ref/compare-online/1",
    "compare-lte": "loko-ref/compare-lte/1",
    "bench": "loko-ref/bench/1",
    "bench-curves": "loko-ref/bench-curves/1",
}
"""Name of a schema -> the value of ``schema`` in its documents."""

WRITTEN_BY = {
    "verify": "verify --json",
    "mutants": "mutants --json, with --score or without",
    "generated": "mutants --generated --json",
    "calibration": "mutants --calibration --json",
    "vectors": "vectors export: manifest.json",
    "case": "case ID --json",
    "certify": "certify --json",
    "train": "train --json",
    "lte": "lte --json",
    "lte-details": "lte --details",
    "compare-online": "compare online --json",
    "compare-lte": "compare lte --json",
    "bench": "bench",
    "bench-curves": "bench --curves",
}
"""Name of a schema -> the command that writes its documents."""

NAMES = tuple(SCHEMAS)
"""Names of the schemas."""


def document(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document: the keys common to all documents, and its content.

    Parameters
    ----------
    name : str
        One of ``NAMES``.
    content : mapping
        All other keys, as JSON data.

    Examples
    --------
    >>> made = document("bench-curves", {"n": [], "T": []})
    >>> made["schema"], sorted(made["versions"])
    ('loko-ref/bench-curves/1', ['loko_ref', 'numpy', 'python'])
    """
    return {
        "schema": SCHEMAS[name],
        "versions": {
            "loko_ref": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "platform": platform.platform(),
        **content,
    }


def load(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document.

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
    place = files("loko_ref.files").joinpath("schemas", f"{name}.json")
    return json.loads(place.read_text(encoding="utf-8"))
