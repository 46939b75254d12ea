"""The pages that are made from the package itself."""

from pathlib import Path

from pages import catalogue, commands, gallery, labels, reference


def write(source: Path, quick: bool = False) -> None:
    """Write all of them below a folder; a quick build runs no example."""
    for part in (catalogue, labels, commands, reference):
        part.write(source)
    gallery.write(source, quick)
