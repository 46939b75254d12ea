"""The pages that are made from the package itself."""

from pathlib import Path


def write(source: Path, quick: bool = False) -> None:
    """Write all of them below a folder; a quick one runs no example, describes few cases."""
    from pages import catalogue, commands, comparison, gallery, labels, reference

    for part in (labels, commands, comparison, reference):
        part.write(source)
    for part in (catalogue, gallery):
        part.write(source, quick)
