"""Models that try to run code wherever they are loaded. The code leaves a file behind, the marker."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.encoders.tiny_clips import CONFIG, add_own_tokenizer, build_clip
from tests.encoders.tiny_models import add_modules, build_encoder, write_json

#: A module that is installed where the models are loaded; importing it leaves the marker.
INSTALLED = "installed_and_evil"

#: A configuration whose name ends as those of indexes of weights do; transformers takes `4.0.0+x.index` for a version.
CONFIGURATION_AS_INDEX = "config.4.0.0+x.index.json"

#: What stands where a configuration has an object of objects.
MALFORMED_MODALITIES: tuple[Any, ...] = ([1], 5, "forward", {"a": 5}, {"text": "forward"}, {"text": [["method", "x"]]})


class Bomb:
    """Leaves the marker when it is unpickled."""

    def __init__(self, marker: Path):
        self._marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self._marker), "w")


def evil_source(marker: Path) -> str:
    """A module of Python with every class that a model may ask for; importing it leaves the marker."""
    return "\n".join(
        [
            f"open({str(marker)!r}, 'w').close()",
            "from transformers import BertConfig as EvilConfig, BertModel as EvilModel, BertTokenizer as EvilTokenizer",
            "class Evil:",
            "    @classmethod",
            "    def load(cls, *arguments, **options): raise ValueError('loaded')",
        ]
    )


class HostileModels:
    """Makes the folders of hostile models; each is another one's copy with something done to it."""

    def __init__(self, root: Path, marker: Path):
        self.root = root
        self.marker = marker
        self.folders: dict[str, Path] = {}
        self._text = add_modules(build_encoder(root / "sound-text", "bert"), pooling={"pooling_mode_mean_tokens": True})
        self._clip = build_clip(root / "sound-clip")
        self.folders.update({"sound/text": self._text, "sound/clip": self._clip})
        self._text_models()
        self._clip_models()

    def _text_models(self) -> None:
        evil = {
            "AutoConfig": "evil.EvilConfig",
            "AutoModel": "evil.EvilModel",
            "AutoTokenizer": ["evil.EvilTokenizer"] * 2,
        }
        self.text("auto-map", lambda each: _edit(each / "config.json", model_type="evil", auto_map=evil))
        self.text("auto-map-of-known-type", lambda each: _edit(each / "config.json", auto_map=evil))
        elsewhere = {"AutoModel": "evil/tokenizer--evil.EvilModel"}
        self.text("auto-map-elsewhere", lambda each: _edit(each / "config.json", model_type="evil", auto_map=elsewhere))
        self.text("tokenizer-auto-map", lambda each: _edit(each / "tokenizer_config.json", auto_map=evil))
        self.text("own-module", lambda each: _add_module(each, "evil.Evil"))
        self.text("installed-module", lambda each: _add_module(each, f"{INSTALLED}.Evil"))
        self.text("router", lambda each: _add_module(each, "sentence_transformers.models.Router"))
        self.text("attribute-of-the-package", lambda each: _add_module(each, "sentence_transformers.base.model.pickle"))
        self.text("folder-outside", lambda each: _add_module(each, "sentence_transformers.models.Dense", "../../.."))
        for name in ("model_args", "tokenizer_args", "config_kwargs"):
            self.text(f"trusting-{name}", partial(_trust, argument=name))
        kernel = {"model_args": {"attn_implementation": "evil/kernel"}}
        self.text("kernel", lambda each: _edit(each / "sentence_bert_config.json", **kernel))
        self.text("kernel-in-config", lambda each: _edit(each / "config.json", attn_implementation="evil/kernel"))
        gguf = {"model_args": {"gguf_file": "model.gguf"}}
        self.text("other-format", lambda each: _edit(each / "sentence_bert_config.json", **gguf))
        method = {"modality_config": {"text": {"method": "save_pretrained", "method_output_name": "x"}}}
        self.text("method", lambda each: _edit(each / "sentence_bert_config.json", **method))
        self.text("activation", self._activation)
        self.text(
            "adapter", lambda each: write_json(each / "adapter_config.json", {"base_model_name_or_path": "evil/x"})
        )
        self.text("pickled", self._pickled)
        self.text("pickled-beside-others", self._pickled_beside_others)
        self.text("pickle-called-safetensors", self._pickle_called_safetensors)
        self.text("weights-outside", self._weights_outside)
        self.text("another-configuration", self._another_configuration)
        self.text("another-configuration-as-index", partial(self._another_configuration, name=CONFIGURATION_AS_INDEX))
        self.text("another-tokenizer", self._another_tokenizer)
        self.text(
            "other-weights", lambda each: _edit(each / "config.json", transformers_weights="x.config.safetensors")
        )
        self.text("index-called-configuration", self._index_called_configuration)
        for number, modalities in enumerate(MALFORMED_MODALITIES):
            self.text(f"modalities-{number}", partial(_set_modalities, modalities=modalities))

    def _clip_models(self) -> None:
        tokenizer = self.root / "tokenizer"
        tokenizer.mkdir()
        add_own_tokenizer(tokenizer)
        _edit(
            tokenizer / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["evil.EvilTokenizer"] * 2},
            tokenizer_class="X",
        )
        write_json(tokenizer / "config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}})
        (tokenizer / "evil.py").write_text(evil_source(self.marker))
        self.folders["evil/tokenizer"] = tokenizer
        trusting = {"hf_tokenizer_name": "evil/tokenizer", "tokenizer_kwargs": {"trust_remote_code": True}}
        self.clip("trusting", text_cfg=trusting)
        self.clip("others-tokenizer", text_cfg={"hf_tokenizer_name": "evil/tokenizer"})
        self.clip("tokenizer-in-a-file", text_cfg={"hf_tokenizer_name": "/etc"})
        self.clip("vocabulary-in-a-file", text_cfg={"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}})
        tower = {"hf_model_name": "evil/tokenizer", "hf_tokenizer_name": "evil/tokenizer"}
        self.clip("others-text-tower", text_cfg=tower, custom_text=True)
        self.clip("others-image-tower", vision_cfg={"timm_model_name": "hf-hub:evil/tokenizer"})
        self.clip("pickled-weights", weights="open_clip_pytorch_model.bin")
        self.clip("pickle-with-another-name", weights="open_clip_model.safetensors")

    def text(self, name: str, change: Callable[[Path], None]) -> None:
        """A copy of a sound text model, with code of its own beside it."""
        folder = shutil.copytree(self._text, self.root / name)
        (folder / "evil.py").write_text(evil_source(self.marker))
        change(folder)
        self.folders[f"evil/{name}"] = folder

    def clip(
        self,
        name: str,
        *,
        text_cfg: Mapping[str, Any] | None = None,
        vision_cfg: Mapping[str, Any] | None = None,
        weights: str | None = None,
        **changes: Any,
    ) -> None:
        """A copy of a sound CLIP model; `weights` is the name of a file that holds a bomb instead."""
        folder = shutil.copytree(self._clip, self.root / f"clip-{name}")
        changed = {
            **CONFIG,
            "text_cfg": {**CONFIG["text_cfg"], **(text_cfg or {})},
            "vision_cfg": {**CONFIG["vision_cfg"], **(vision_cfg or {})},
            **changes,
        }
        write_json(folder / "open_clip_config.json", {"model_cfg": changed, "preprocess_cfg": {}})
        if weights is not None:
            (folder / "open_clip_model.safetensors").unlink()
            self.bomb(folder / weights)
        self.folders[f"evil/clip-{name}"] = folder

    def bomb(self, file: Path) -> None:
        """Writes an archive as torch writes them, that leaves the marker when it is unpickled."""
        import torch

        torch.save({"weight": Bomb(self.marker)}, file, pickle_module=pickle)

    def _pickled(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        self.bomb(folder / "pytorch_model.bin")

    def _pickled_beside_others(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        self.bomb(folder / "pytorch_model.bin")

    def _pickle_called_safetensors(self, folder: Path) -> None:
        self.bomb(folder / "model.safetensors")

    def _weights_outside(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "../../../../../../etc/passwd"}})

    def _another_configuration(self, folder: Path, name: str = "config.4.0.0.json") -> None:
        """The usual one is sound, and sends transformers to one that asks for code."""
        content = json.loads((folder / "config.json").read_text())
        evil = {"auto_map": {"AutoConfig": "evil.EvilConfig"}, "attn_implementation": "evil/kernel"}
        write_json(folder / name, {**content, **(evil if name == CONFIGURATION_AS_INDEX else {})})
        _edit(folder / "config.json", configuration_files=[name])

    def _another_tokenizer(self, folder: Path) -> None:
        shutil.copyfile(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
        _edit(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])

    def _index_called_configuration(self, folder: Path) -> None:
        write_json(folder / "x.config.safetensors.index.json", {"weight_map": {"x": "../../../../../../etc/passwd"}})

    def _activation(self, folder: Path) -> None:
        _add_module(folder, "sentence_transformers.models.Dense", "3_Dense")
        config = {"in_features": 32, "out_features": 32, "bias": True, "activation_function": f"{INSTALLED}.Evil"}
        write_json(folder / "3_Dense" / "config.json", config)


def _trust(folder: Path, argument: str) -> None:
    _edit(folder / "sentence_bert_config.json", **{argument: {"trust_remote_code": True}})


def _set_modalities(folder: Path, modalities: Any) -> None:
    _edit(folder / "sentence_bert_config.json", modality_config=modalities)


def _edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    write_json(file, {**content, **changes})


def _add_module(folder: Path, kind: str, path: str = "") -> None:
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*modules, {"idx": 9, "name": "9", "path": path, "type": kind}])
