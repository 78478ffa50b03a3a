"""CLIP's towers as torch modules, and their export to OpenVINO, measured against open_clip's float32 result.

Called by the engine `open_clip`. An export is a `MeasuredFolder` in `<cache directory>/open_clip/`, named by the
model's revision, with these files beside its own:

    image.xml, text.xml (and .bin)   the towers; pixels or token ids in, unit vectors out
    samples.npz                      built-in samples and open_clip's own float32 vectors of them

description.json says as `short_texts` whether the text tower takes texts without their padding. It is read without
torch.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vectorize_pipelines.encoders.base import Vectors
from vectorize_pipelines.encoders.batching import TokenBatch
from vectorize_pipelines.encoders.engines.equality import Agreement, compare, sample_texts
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.engines.open_clip.tokenizer import clip_tokenizer
from vectorize_pipelines.encoders.engines.openvino_runtime import (
    import_openvino,
    native_precisions,
    scaled_to_unit_length,
)
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.models.open_clip import CONFIG_FILE, ClipModel, text_tower_config
from vectorize_pipelines.encoders.models.vetting import SAFE_WEIGHTS, copy_config, link
from vectorize_pipelines.encoders.models.weights import is_torchscript
from vectorize_pipelines.errors import UnknownModelError
from vectorize_pipelines.images.preprocessing import Pixels, Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

Ids: TypeAlias = "npt.NDArray[np.int64]"

TOWERS = ("image", "text")

#: Changes where the files of an export change their meaning.
EXPORT_VERSION = 2

SAMPLE_IMAGES = 8

#: What OpenAI's archives hold beside weights.
_TORCHSCRIPT_CONSTANTS = frozenset({"input_resolution", "context_length", "vocab_size"})


def load_model(model: ClipModel, device: str = "cpu", precision: str = "fp32") -> Any:
    """Return the torch model, by open_clip itself; `precision` as `open_clip.create_model` names it.

    Raises `UnknownModelError` where configuration and weights do not fit or cannot be read.
    """
    import open_clip
    import torch
    from safetensors import SafetensorError

    # open_clip reads a configuration only from a folder that holds the weights too.
    with tempfile.TemporaryDirectory(prefix="open_clip-") as folder:
        try:
            (Path(folder) / CONFIG_FILE).write_text(json.dumps({"model_cfg": _config(model, Path(folder))}))
            _lay_weights(model.weights, Path(folder))
            loaded = open_clip.create_model(
                f"local-dir:{folder}", device=device, precision=precision, weights_only=True
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, SafetensorError) as error:
            raise UnknownModelError(f"the model {model.name} cannot be loaded: {error}") from error
    return loaded.eval().requires_grad_(requires_grad=False)


def _config(model: ClipModel, folder: Path) -> dict[str, Any]:
    """Return the model's configuration. A text tower of transformers is one that lies in `folder`, looked through."""
    if not model.text_config.get("hf_model_name"):
        return dict(model.config)
    tower = folder / "text_tower"
    tower.mkdir()
    copy_config(text_tower_config(model), tower / "config.json")
    return {**model.config, "text_cfg": {**model.text_config, "hf_model_name": str(tower)}}


def _lay_weights(weights: Path, folder: Path) -> None:
    """Put the weights into `folder` under a name that open_clip takes, by a link where that is possible."""
    if weights.suffix != SAFE_WEIGHTS and is_torchscript(weights):
        import torch
        from safetensors.torch import save_file

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises against the format
            state = torch.jit.load(weights, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        kept = {name: value.contiguous() for name, value in state.items() if name not in _TORCHSCRIPT_CONSTANTS}
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        return
    suffix = SAFE_WEIGHTS if weights.suffix == SAFE_WEIGHTS else ".bin"
    link(weights, folder / f"open_clip_pytorch_model{suffix}")


def tower_modules(loaded: Any, preprocessing: Preprocessing, precision: str = "fp32") -> dict[str, Any]:
    """Return the two towers as modules: uint8 pixels (n, height, width, 3) or token ids (n, length) to unit vectors.

    Normalising the pixels is part of the image tower, so that bytes are what is copied to the device. `precision`
    is the one that the model was loaded in.
    """
    import open_clip
    import torch

    dtype = open_clip.get_input_dtype(precision) or torch.float32

    class ImageTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loaded = loaded
            statistics = torch.tensor([preprocessing.mean, preprocessing.std], device=loaded.logit_scale.device)
            self.mean, self.deviation = statistics.reshape(2, 1, 3, 1, 1)

        def forward(self, pixels: Any) -> Any:
            normalised = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.deviation
            vectors = self.loaded.encode_image(normalised.to(dtype))
            return torch.nn.functional.normalize(vectors.float(), dim=-1)

    class TextTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loaded = loaded

        def forward(self, ids: Any) -> Any:
            short = takes_short_texts(self.loaded)
            vectors = _short_text(self.loaded, ids) if short else self.loaded.encode_text(ids)
            return torch.nn.functional.normalize(vectors.float(), dim=-1)

    return {"image": ImageTower().eval(), "text": TextTower().eval()}


def takes_short_texts(loaded: Any) -> bool:
    """Return whether the text tower may be given fewer tokens than its context: nothing looks beyond the end token.

    So in CLIP itself: causal attention, and the vector is taken at the end token. Most texts are short, and the
    padding of a short one costs more than the text.
    """
    import open_clip

    return isinstance(loaded, open_clip.CLIP) and loaded.text_pool_type == "argmax" and loaded.attn_mask is not None


def _short_text(loaded: Any, ids: Any) -> Any:
    """Encode texts as `CLIP.encode_text` of open_clip, for any number of tokens up to its context."""
    import torch

    length = ids.shape[1]
    dtype = loaded.transformer.get_cast_dtype()
    states = loaded.token_embedding(ids).to(dtype) + loaded.positional_embedding[:length].to(dtype)
    states = loaded.ln_final(loaded.transformer(states, attn_mask=loaded.attn_mask[:length, :length]))
    pooled = states[torch.arange(states.shape[0], device=states.device), ids.argmax(dim=-1)]
    projection = loaded.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection


def export_folder(revision: str, cache_directory: Path) -> MeasuredFolder:
    """Return where the export of the model of this revision lies, made or not."""
    return MeasuredFolder(cache_directory / "open_clip" / f"{revision}-{EXPORT_VERSION}", "openvino", "cpu")


def make_export(model: ClipModel, revision: str, folder: MeasuredFolder) -> None:
    """Make the export unless it is there; other processes wait meanwhile.

    Raises `UnknownModelError` where the model cannot be loaded, `EngineRefusedError` where OpenVINO cannot convert.
    """

    def write(partial: Path) -> dict[str, Any]:
        logger.info("exporting %s for OpenVINO; this happens once", model.name)
        short_texts = _write_files(model, partial)
        return {"model": model.name, "revision": revision, "engine": "open_clip", "short_texts": short_texts}

    folder.make(write)


def _write_files(model: ClipModel, folder: Path) -> bool:
    """Write the towers and the samples; return whether the text tower takes texts without their padding."""
    import numpy as np

    loaded = load_model(model)
    pixels = sample_pixels(model.preprocessing)
    ids = sample_ids(model)
    np.savez(
        folder / "samples.npz",
        image=pixels,
        text=ids,
        image_vectors=reference_vectors(loaded, "image", pixels, model.preprocessing),
        text_vectors=reference_vectors(loaded, "text", ids, model.preprocessing),
    )
    samples = {"image": pixels[:2], "text": ids[:2]}
    for name, module in tower_modules(loaded, model.preprocessing).items():
        try:
            _convert(module, samples[name], folder / f"{name}.xml", dynamic=2 if name == "text" else 1)
        except MemoryError:
            raise
        except Exception as error:  # converters fail in ways that no documentation lists
            reason = " ".join(str(error).split())[:300]
            raise EngineRefusedError(f"OpenVINO cannot convert the {name} tower of {model.name}: {reason}") from error
    return takes_short_texts(loaded)


def _convert(module: Any, sample: Any, path: Path, dynamic: int) -> None:
    """Write the module's IR, its first `dynamic` dimensions open."""
    import torch

    openvino = import_openvino()
    example = torch.from_numpy(sample)
    with torch.no_grad(), _traceable_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every assertion in open_clip
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    shape = [-1] * dynamic + list(sample.shape[dynamic:])
    element = openvino.Type.u8 if sample.dtype.itemsize == 1 else openvino.Type.i64
    converted = openvino.convert_model(traced, example_input=example, input=[(shape, element)])
    openvino.save_model(converted, path, compress_to_fp16=False)


@contextlib.contextmanager
def _traceable_attention() -> Iterator[None]:
    """Turn off torch's fused kernel for attention layers in evaluation mode, which cannot be converted."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def reference_vectors(loaded: Any, tower: str, samples: Any, preprocessing: Preprocessing) -> Vectors:
    """Return open_clip's own vectors of the samples, by the model as it is: neither towers nor texts cut short."""
    import numpy as np
    import torch

    with torch.inference_mode():
        if tower == "text":
            vectors = loaded.encode_text(torch.from_numpy(samples), normalize=True)
        else:
            mean, deviation = (np.array(each, dtype=np.float32) for each in (preprocessing.mean, preprocessing.std))
            pixels = (samples.astype(np.float32) / 255 - mean) / deviation
            vectors = loaded.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), normalize=True)
    return np.asarray(vectors, dtype=np.float32)


def sample_pixels(preprocessing: Preprocessing) -> Pixels:
    """Return built-in pictures, always the same: sums of waves whose amplitude falls with their frequency, as in
    photographs, the last two with sharp edges; shape (`SAMPLE_IMAGES`, height, width, 3)."""
    import numpy as np

    random = np.random.default_rng(20)
    rows, columns = np.mgrid[0 : preprocessing.height, 0 : preprocessing.width]
    rows, columns = rows / preprocessing.height, columns / preprocessing.width
    pictures = []
    for number in range(SAMPLE_IMAGES):
        picture = np.zeros((preprocessing.height, preprocessing.width, 3))
        for frequency in (1, 2, 3, 5, 8, 13, 21, 34):
            angle, phase = random.uniform(0, 2 * np.pi, 2)
            wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
            picture += wave[..., None] * random.normal(size=3) / frequency
        if number >= SAMPLE_IMAGES - 2:
            picture = np.sign(picture)
        pictures.append(127.5 + 127.5 * picture / np.abs(picture).max())
    return np.stack(pictures).astype(np.uint8)


def sample_ids(model: ClipModel) -> Ids:
    """Return token ids of built-in texts, shape (n, context length), filled up with 0."""
    ids = clip_tokenizer(model).ids(sample_texts(model.context_length))
    return padded(TokenBatch(list(range(len(ids))), ids), model.context_length)


def padded(batch: TokenBatch, length: int) -> Ids:
    """Return token ids as an array of shape (n, length), filled up with CLIP's padding, 0."""
    return batch.padded(padding=0, width=length)[0]


def measured_precisions(folder: MeasuredFolder, wanted: str, compiled: Callable[[str, str], Any]) -> dict[str, str]:
    """Return each tower's precision: the fastest that is equal to float32 here, or the one that is wanted.

    `compiled(tower, precision)` returns the compiled tower. Raises `EngineRefusedError` where none is equal.
    """

    def agreement(tower: str, precision: str) -> Agreement:
        import numpy as np

        with np.load(folder.directory / "samples.npz") as samples:
            vectors = scaled_to_unit_length(compiled(tower, precision)(samples[tower])[0], precision)
            return compare(vectors, samples[f"{tower}_vectors"])

    native = native_precisions()
    return {tower: folder.fastest_equal(tower, wanted, native, partial(agreement, tower)) for tower in TOWERS}
