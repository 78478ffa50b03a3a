"""Small random CLIP models on disk, as open_clip's `save_for_hf` lays them out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG: Mapping[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def build_clip(
    directory: Path, *, preprocess: Mapping[str, Any] | None = None, safe: bool = True, **changes: Any
) -> Path:
    """A model with random weights large enough for every layer to matter. `changes` are to `CONFIG`."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {**CONFIG, **changes}
    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    torch.manual_seed(11)
    model = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**arguments)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "logit" not in name:
            torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.25)
    directory.mkdir(parents=True)
    (directory / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": dict(preprocess or {})})
    )
    if safe:
        save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    else:
        torch.save(model.state_dict(), directory / "open_clip_pytorch_model.bin")
    return directory


def add_own_tokenizer(directory: Path) -> None:
    """Saves a tokenizer of single letters into a model's folder."""
    from transformers import BertTokenizer

    letters = [chr(number) for number in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(directory)
