"""In which precision a model may be computed here: measured once against the model's own forward pass, and kept.

For every model lies in `<cache directory>/torch/<key>/`:

    reference.npy     float32 vectors of `equality.sample_texts` by transformers' own model, text by text
    measurement.json  by chip: how near each precision comes to the reference, and which one was chosen

The float32 of `torch_forward.py` is measured first: a model that it does not reproduce is refused. transformers is
imported only for the reference. Called by the engine `torch`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.devices import device_kind
from vectorize_pipelines.encoders.engines import EngineRefusedError, LoadRequest
from vectorize_pipelines.encoders.equality import Agreement, compare, sample_texts
from vectorize_pipelines.encoders.files import read_json, write_whole
from vectorize_pipelines.encoders.machine import cpu_flags, device_identity
from vectorize_pipelines.encoders.protocol import Vectors
from vectorize_pipelines.encoders.sentence_transformers import quiet
from vectorize_pipelines.encoders.tokenizer import ModelTokenizer
from vectorize_pipelines.encoders.torch_forward import DTYPES
from vectorize_pipelines.errors import SettingsError

logger = logging.getLogger(__name__)

#: Part of every key: raised whenever the forward pass, the sample or the files change.
FORWARD_VERSION = 1

#: Values of the setting `encoder.precision`.
PRECISIONS = ("auto", *DTYPES)


@dataclass(frozen=True, slots=True)
class Precision:
    """In which precision a model is computed here, and what was measured.

    used      a key of `DTYPES`
    measured  by precision: how near it comes to transformers' float32 on this chip
    """

    used: str
    measured: Mapping[str, Agreement]

    def __str__(self) -> str:
        """What was measured, for people."""
        said = f"In {self.used} it agrees with transformers' float32 on this chip: {self.measured[self.used]}."
        return said + "".join(f" {name} does not: {found}." for name, found in self.measured.items() if not found.equal)


def native_precisions(device: str) -> tuple[str, ...]:
    """What the chip computes fast, fastest first; float32 is always the last."""
    kind = device_kind(device)
    if kind == "cpu":
        return ("bf16", "float32") if cpu_flags() & {"avx512_bf16", "amx_bf16"} else ("float32",)
    if kind == "mps":
        return ("fp16", "float32")
    import torch

    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:  # both in the tensor cores; fp16 is nearer to float32 but overflows sooner
        return ("bf16", "fp16", "float32")
    return ("fp16", "float32") if major == 7 else ("float32",)


def wanted_precisions(precision: str, device: str) -> tuple[str, ...]:
    """What to try for a value of the setting, best first. Raises `SettingsError` naming the choices."""
    if precision not in PRECISIONS:
        raise SettingsError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return native_precisions(device)
    return tuple(dict.fromkeys((precision, "float32")))


def chosen_precision(
    request: LoadRequest, tokenizer: ModelTokenizer, encode: Callable[[str, list[str]], Vectors]
) -> Precision:
    """The first wanted precision that gives the model's vectors on this chip, measured now if it never was.

    `encode(precision, texts)` gives vectors in a precision. Safe when several processes start at once. Raises
    `EngineRefusedError` where not even float32 gives the model's vectors, or nothing can be kept.
    """
    from filelock import FileLock

    wanted = wanted_precisions(request.precision, request.device)
    directory = request.cache_directory / "torch" / _key(request)
    chip = device_identity(request.device)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "measurement.lock"):
            measured = _measured(directory, chip)
            missing = [each for each in reversed(wanted) if each not in measured]  # float32 first
            if missing and ("float32" not in measured or measured["float32"].equal):
                measured = _measure(request, directory, missing, measured, tokenizer, encode)
                _keep(directory, chip, measured)
    except OSError as error:
        raise EngineRefusedError(f"what is measured of it cannot be kept in {directory}: {error}") from error
    if not measured["float32"].equal:
        raise EngineRefusedError(f"its vectors differ from those of transformers ({measured['float32']})")
    tried = {each: measured[each] for each in wanted if each in measured}
    return Precision(_best(tried), tried)


def _best(measured: Mapping[str, Agreement]) -> str:
    """The first that is equal; `measured` is ordered, best first."""
    return next(name for name, found in measured.items() if found.equal)


def _key(request: LoadRequest) -> str:
    """By content: the same weights under two names share a measurement."""
    import torch

    spec = request.spec
    decisive = (
        f"{FORWARD_VERSION} {torch.__version__} {spec.max_length} {spec.dimension} {spec.pooling} {spec.normalized}"
    )
    return f"{spec.revision}-{hashlib.blake2b(decisive.encode(), digest_size=4).hexdigest()}"


def _measured(directory: Path, chip: str) -> dict[str, Agreement]:
    kept = read_json(directory / "measurement.json").get(chip, {}).get("agreement", {})
    return {name: Agreement(**values) for name, values in kept.items()}


def _keep(directory: Path, chip: str, measured: Mapping[str, Agreement]) -> None:
    file = directory / "measurement.json"
    best_first = {name: measured[name] for name in ("bf16", "fp16", "float32") if name in measured}
    chosen = _best(best_first) if measured["float32"].equal else None
    found = {"precision": chosen, "agreement": {name: asdict(each) for name, each in measured.items()}}
    write_whole(file, json.dumps({**read_json(file), chip: found}, indent=1))


def _measure(
    request: LoadRequest,
    directory: Path,
    precisions: list[str],
    measured: Mapping[str, Agreement],
    tokenizer: ModelTokenizer,
    encode: Callable[[str, list[str]], Vectors],
) -> dict[str, Agreement]:
    reference = _reference(request, directory, tokenizer)
    found = dict(measured)
    for precision in precisions:
        found[precision] = compare(encode(precision, sample_texts(request.spec.max_length)), reference)
        logger.info("%s in %s against transformers: %s", request.name, precision, found[precision])
        if not found["float32"].equal:
            break
    return found


def _reference(request: LoadRequest, directory: Path, tokenizer: ModelTokenizer) -> Vectors:
    import numpy as np

    file = directory / "reference.npy"
    if not file.is_file():
        partial = file.with_name("partial.npy")
        np.save(partial, _reference_vectors(request, tokenizer))
        partial.replace(file)
    reference: Vectors = np.load(file)
    return reference


def _reference_vectors(request: LoadRequest, tokenizer: ModelTokenizer) -> Vectors:
    """transformers' own model on one text after another, so without padding or packing; pooled in plain sight."""
    import numpy as np
    import torch

    layout = request.layout
    model = _transformers_model(request)
    rows = []
    with torch.inference_mode():
        for ids in tokenizer.ids(sample_texts(request.spec.max_length)):
            tokens = torch.tensor([ids], device=request.device)
            hidden = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
            pooled = {"mean": hidden.mean(0), "max": hidden.amax(0), "cls": hidden[0]}
            vector = torch.cat([pooled[mode] for mode in layout.pooling_modes])
            if "Normalize" in layout.modules:
                vector = vector / vector.norm()
            rows.append(vector[: layout.dimension].cpu().numpy())
    return np.vstack(rows)


def _transformers_model(request: LoadRequest) -> Any:
    with quiet():
        import torch
        from transformers import AutoModel

        loader: Any = AutoModel
        directory = str(request.layout.transformer_directory)
        model = loader.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    return model.eval().to(request.device)
