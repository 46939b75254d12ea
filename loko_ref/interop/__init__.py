"""Weights of other packages: Hugging Face classifiers and PEFT LoRA adapters, as files.

Nothing here imports torch, transformers or peft: the files are JSON and safetensors, and both are
read and written with NumPy alone. Pickled files are refused.

Classifiers: RoBERTa, XLM-RoBERTa, CamemBERT, BERT, DistilBERT, ViT, DeiT, with gelu (exact or by
tanh), relu or tanh. Adapters: LoRA of any rank on linears and on the patches' convolution, scaled
by r or sqrt(r), ranks and alphas by pattern, biases, and whole modules (heads, norms, tables)
trained beside it. What else a configuration may ask for (LoRA on an embedding table, DoRA, silu,
relative positions, quantised weights, ...) is refused as not supported, by its field's name.
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
