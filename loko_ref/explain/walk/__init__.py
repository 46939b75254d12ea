"""The walk: steps of a filter as one page that one goes through by a slider, number by number."""

from loko_ref.explain.walk.page import as_html, check_needs
from loko_ref.explain.walk.pages import of_lte, of_recording, of_source, of_tiny

__all__ = ["as_html", "check_needs", "of_lte", "of_recording", "of_source", "of_tiny"]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
