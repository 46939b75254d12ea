"""Named arrays in a file: NumPy's ``.npz`` and ``.safetensors``, read without trust.

Nothing in a file is executed, and none of its claims is believed: sizes, shapes, dtypes and places
are checked against the file before an array is made.
"""

from loko_ref.files.containers.npz import pack_npz, parse_npz, text_of
from loko_ref.files.containers.tensors import pack_safetensors, parse_safetensors

__all__ = ["pack_npz", "pack_safetensors", "parse_npz", "parse_safetensors", "text_of"]
