"""my_loko with one mistake: LoRA's scale alpha / r is left out of the Jacobian.

The outputs z are right, and a step still goes downhill, so nothing crashes and training looks
plausible. ``loko-ref verify examples/my_buggy_loko.py`` exits with 1 and names Z.
"""

import importlib.util
from pathlib import Path

# a copy of my_loko of its own, so that the original stays right wherever it is imported
_spec = importlib.util.spec_from_file_location(
    "my_loko_with_a_mistake", Path(__file__).with_name("my_loko.py")
)
my_loko = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(my_loko)


def branch_cotangent(scale, d):
    return list(d)  # the mistake: scale * g


my_loko.branch_cotangent = branch_cotangent
IMPLEMENTATION = my_loko.IMPLEMENTATION
