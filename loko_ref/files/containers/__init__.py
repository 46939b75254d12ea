"""Named arrays in a file: NumPy's ``.npz`` and ``.safetensors``, read as untrusted input.

Nothing in a file is executed, and nothing it declares is trusted: sizes, shapes, dtypes and offsets
are checked against the file before an array is created.
"""

from loko_ref.files.containers.npz import pack_npz, parse_npz, text_of
from loko_ref.files.containers.tensors import pack_safetensors, parse_safetensors

__all__ = ["pack_npz", "pack_safetensors", "parse_npz", "parse_safetensors", "text_of"]
