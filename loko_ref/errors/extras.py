"""Packages that an extra brings: imported where they are first needed, or named with the extra."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from loko_ref.errors import MissingExtraError

EXTRAS = {
    "typer": ("typer", "cli"),
    "rich": ("rich", "cli"),
    "jinja2": ("jinja2", "cli"),
    "docutils": ("docutils", "cli"),
    "markdown_it": ("markdown-it-py", "cli"),
    "threadpoolctl": ("threadpoolctl", "cli"),
    "sklearn": ("scikit-learn", "data"),
    "matplotlib": ("matplotlib", "data"),
    "hypothesis": ("hypothesis", "test"),
    "mpi4py": ("mpi4py", "mpi"),
    "flint": ("flint", "certify"),
    "safetensors": ("safetensors", "interop"),
    "tokenizers": ("tokenizers", "interop"),
    "torch": ("torch", "interop"),
    "sphinx": ("sphinx", "docs"),
    "myst_parser": ("myst-parser", "docs"),
    "furo": ("furo", "docs"),
}
"""What is imported -> the package's name in an error, and the extra that brings it."""


def load(module: str, feature: str, within: str | None = None) -> Any:
    """Import a module of a package that an extra brings.

    Parameters
    ----------
    module : str
        Dotted name; its first part is a key of ``EXTRAS``.
    within : str, optional
        A larger extra that brings it with all else that the feature needs.

    Raises
    ------
    MissingExtraError
        If the package is not installed, or is installed and fails to import.
    """
    root = module.partition(".")[0]
    package, extra = EXTRAS[root]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == root
        failure = "" if absent else (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingExtraError(feature, package, within or extra, failure) from error


def folder(package: str, feature: str) -> Path:
    """Return the folder of an installed package, for its data files; the package is not imported.

    Parameters
    ----------
    package : str
        A key of ``EXTRAS``.

    Raises
    ------
    MissingExtraError
        If the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtraError(feature, *EXTRAS[package])
    return Path(found.origin).parent
