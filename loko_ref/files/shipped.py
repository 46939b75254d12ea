"""Texts of the checkout that the wheel carries: ``derivations/``, the harnesses of ``examples/``.

In a checkout they stand beside the package; a wheel has copies inside it (pyproject.toml,
``force-include``).
"""

from __future__ import annotations

from pathlib import Path

import loko_ref


def shipped(folder: str) -> Path:
    """Return a folder of the checkout, or the wheel's copy of it.

    Parameters
    ----------
    folder : str
        ``derivations`` or ``examples``; of the latter the wheel has the harnesses alone.

    Examples
    --------
    >>> (shipped("derivations") / "kalman.md").is_file()
    True
    """
    package = Path(loko_ref.__file__).parent
    inside = package / "shipped" / folder
    return inside if inside.is_dir() else package.parent / folder
