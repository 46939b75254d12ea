"""A small ViT checkpoint and an adapter on it, written by hand: needs neither torch nor peft."""

import json

from loko_ref.interop import load_classifier, save_adapter, write_tensors
from loko_ref.interop.checkpoints import Checkpoint
from loko_ref.interop.families import modules
from loko_ref.network.architectures import vit_spec
from loko_ref.network.model import add_lora, init_model

SIZE = {"layers": 2, "width": 4, "heads": 2, "ff": 6, "outputs": 3}
CONFIG = {
    "model_type": "vit",
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}


def saved(folder, rng, change=lambda tensors: None, **config):
    """A ViT checkpoint written by hand, in transformers 4's names."""
    model = init_model(rng, vit_spec(image=(1, 4, 4), patch=(2, 2), **SIZE))
    names, tensors = modules("vit", 2), {}
    for key, array in model.weights.items():
        ours, part = key.rsplit(".", 1)
        if ours in names:
            suffix = {"W": "weight", "g": "weight", "b": "bias"}[part]
            tensors[f"{names[ours][-1]}.{suffix}"] = array
    at = "vit.embeddings."
    kernel = at + "patch_embeddings.projection.weight"
    tensors[kernel] = tensors[kernel].reshape(4, 1, 2, 2)
    tensors[at + "cls_token"] = model.weights["cls.token"][None]
    tensors[at + "position_embeddings"] = model.weights["pos.position"][None]
    change(tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    write_tensors(folder / "model.safetensors", tensors)
    return model


def adapted(tmp_path, rng):
    saved(tmp_path / "base", rng)
    base = load_classifier(tmp_path / "base")
    model = add_lora(rng, base.model, r=2, alpha=3.0, targets=["0.q", "1.v"])
    full = Checkpoint(model=model, family="vit", config=base.config)
    save_adapter(full, tmp_path / "adapter")
    return base, full


def change_json(path, change):
    """Write a JSON object anew, some of its fields changed; `...` takes one out."""
    data = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}, default=str))
