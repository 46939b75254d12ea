"""LoKO's step explained: every quantity in dataflow order, with equation, label and numbers.

:func:`explain` takes a :class:`loko_ref.experiments.config.RunConfig` of ``loko`` and yields a
:class:`Step` for each step; ``loko-ref explain`` prints them.
"""

from loko_ref.explain.steps import Excerpt, Quantity, Step, explain, parameter_name

__all__ = ["Excerpt", "Quantity", "Step", "explain", "parameter_name"]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
