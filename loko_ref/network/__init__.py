"""The network as data: layers, the spec that lists them, the model, its Jacobian, LoRA."""

from loko_ref.network import architectures, jacobian, layers, lora, model, spec

__all__ = ["architectures", "jacobian", "layers", "lora", "model", "spec"]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
