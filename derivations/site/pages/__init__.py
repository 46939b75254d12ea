"""The pages that are made from the package itself."""

from pathlib import Path


def write(source: Path, quick: bool = False) -> None:
    """Write all of them below a folder; a quick build runs no example."""
    from pages import catalogue, commands, comparison, gallery, labels, reference

    for part in (catalogue, labels, commands, comparison, reference):
        part.write(source)
    gallery.write(source, quick)
