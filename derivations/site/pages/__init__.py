"""The pages that are made from the package itself."""

from pathlib import Path

from pages import catalogue, commands, gallery, labels, reference


def write(source: Path) -> None:
    """Write all of them below a folder."""
    for part in (catalogue, labels, commands, reference, gallery):
        part.write(source)
