"""The network as data: layers, the spec that lists them, the model, its Jacobian, LoRA."""
