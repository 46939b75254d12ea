"""Weights of other packages: Hugging Face classifiers and PEFT LoRA adapters, as files.

Nothing here imports torch, transformers or peft: the files are JSON and safetensors, and both are
read and written with NumPy alone. Pickled files are refused.
"""

from loko_ref.interop.adapters import load_adapter, save_adapter
from loko_ref.interop.checkpoints import Checkpoint, load_classifier
from loko_ref.interop.tensors import read_tensors, write_tensors

__all__ = [
    "Checkpoint",
    "load_adapter",
    "load_classifier",
    "read_tensors",
    "save_adapter",
    "write_tensors",
]
