"""Packages that a command needs beyond the extra ``[cli]``, checked before it does anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loko_ref.arrays import get_backend
from loko_ref.errors import extras
from loko_ref.experiments.data import bundled

EXTRA = {"train": "data", "explain": "data", "lte": "data", "certify": "certify"}
EXTRA |= {"properties": "test"}
"""Command -> the extra that it needs with its default options; the others need ``cli`` alone."""


def check_needs(
    *,
    modules: Iterable[tuple[str, str]] = (),
    data: str | None = None,
    tokenizer: str | None = None,
    plot: Path | None = None,
    html: Path | None = None,
    backend: str | None = None,
) -> None:
    """Raise unless the packages that a command's options need can be imported.

    Parameters
    ----------
    modules : iterable of (str, str)
        Modules that the command always needs, each with the feature that needs it.
    tokenizer, plot, html : optional
        Options that each need a further package.
    backend : str, optional
        The array library; NumPy is always available.

    Raises
    ------
    MissingExtraError
        If a package is missing.
    BackendError, InputError
        If the backend cannot be used, or is unknown.
    """
    for module, feature in modules:
        extras.load(module, feature)
    if html is not None:
        extras.load("jinja2", "the HTML report")
    if data in bundled.DATASETS:
        extras.folder("sklearn", f"the data set '{data}'")
    if tokenizer is not None:
        extras.load("tokenizers", "raw text by a tokenizer")
    if plot is not None:
        extras.load("matplotlib.figure", "a plot")
    if backend == "cupy":
        get_backend(backend)
