"""torch_loko with one mistake: 1e-6 is added to S before it is inverted, "for stability"."""

import importlib.util
from pathlib import Path

import torch

from loko_ref.conformance.implementations.frameworks import from_torch

_spec = importlib.util.spec_from_file_location(
    "torch_loko_with_a_mistake", Path(__file__).with_name("torch_loko.py")
)
torch_loko = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch_loko)


class BuggyLoKO(torch_loko.LoKO):
    def gain(self, p, H, S):
        return super().gain(p, H, S + 1e-6 * torch.eye(len(S), dtype=S.dtype))  # the mistake


IMPLEMENTATION = from_torch(
    lambda module, options: torch_loko.make(module, options, BuggyLoKO),
    lambda optimizer, module, x, y: optimizer.step(module, x, y),
)
