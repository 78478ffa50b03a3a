"""Exporting a model to OpenVINO, once: graph, tokenizer, and proof that both give the model's own vectors.

An export lies in `<cache directory>/exports/<key>/`:

    model.xml, model.bin  the graph, pooling and normalisation included
    tokenizer.json        the tokenizer as sentence-transformers uses it
    reference.npy         sentence-transformers' float32 vectors of `equality.sample_texts`
    export.json           padding token, sizes of the files; or why the model cannot be exported
    measurement.json      by CPU: how near each precision comes to the reference, and which one is used

torch, transformers and sentence_transformers are imported only while an export is made. Called by the
`openvino` engine.
"""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.batching import out_of_memory
from vectorize_pipelines.encoders.engines import EngineRefusedError, LoadRequest
from vectorize_pipelines.encoders.equality import Agreement, compare, sample_texts
from vectorize_pipelines.encoders.files import read_json, write_whole
from vectorize_pipelines.encoders.machine import cpu_identity
from vectorize_pipelines.encoders.openvino_graph import Graph, import_openvino, native_precisions
from vectorize_pipelines.encoders.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from vectorize_pipelines.encoders.sentence_transformers import SentenceTransformersEncoder

logger = logging.getLogger(__name__)

#: Part of every export's key: raised whenever the graph, the sample or the files change.
EXPORT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Export:
    """An export on disk that is fit for use on this machine.

    directory  where it lies
    padding    token id that fills up shorter texts
    precision  in which it is to be run here
    measured   by precision: how near it comes to sentence-transformers' float32 on this CPU
    """

    directory: Path
    padding: int
    precision: str
    measured: Mapping[str, Agreement]

    def __str__(self) -> str:
        """What was measured, for people."""
        used = f"In {self.precision} it agrees with sentence-transformers on this CPU: {self.measured[self.precision]}."
        others = [f" {name} does not: {found}." for name, found in self.measured.items() if not found.equal]
        return used + "".join(others)


def exported(request: LoadRequest) -> Export:
    """The export of a model, made or measured now where that has not happened yet.

    Safe when several processes start at once: one works, the others wait for it. Raises `EngineRefusedError`
    where the model cannot be exported or its export does not give its vectors, and `UnknownModelError` where
    the model cannot be loaded at all.
    """
    from filelock import FileLock

    directory = request.cache_directory / "exports" / _key(request)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if not (_is_complete(directory) and _measured(directory)):
            with FileLock(directory.with_suffix(".lock")):
                if not _is_complete(directory):
                    _export(request, directory)
                if not _measured(directory):
                    _measure(request, directory)
        return _ready(directory)
    except OSError as error:
        raise EngineRefusedError(f"its export to {directory} failed: {error}") from error


def export_tokenizer(request: LoadRequest, directory: Path) -> ModelTokenizer:
    """The tokenizer of an export; it needs no lower-casing of ours, which the exported one does itself."""
    source = (directory / "tokenizer.json").read_text(encoding="utf-8")
    return ModelTokenizer(source, max_length=request.spec.max_length, prompt=request.spec.prompt)


def discard(request: LoadRequest) -> None:
    """Removes a damaged export, so that the next use makes it anew."""
    shutil.rmtree(request.cache_directory / "exports" / _key(request), ignore_errors=True)


def _key(request: LoadRequest) -> str:
    """By content: the same weights under two names share an export."""
    spec = request.spec
    decisive = f"{EXPORT_VERSION} {import_openvino().__version__} {spec.max_length} {spec.dimension} {spec.pooling}"
    return f"{spec.revision}-{hashlib.blake2b(decisive.encode(), digest_size=4).hexdigest()}"


def _is_complete(directory: Path) -> bool:
    description = read_json(directory / "export.json")
    if "refusal" in description:
        return True
    sizes: dict[str, int] = description.get("sizes", {})
    paths = {directory / name: size for name, size in sizes.items()}
    return bool(sizes) and all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _measured(directory: Path) -> bool:
    refused = "refusal" in read_json(directory / "export.json")
    return refused or cpu_identity() in read_json(directory / "measurement.json")


def _ready(directory: Path) -> Export:
    description = read_json(directory / "export.json")
    if "refusal" in description:
        raise EngineRefusedError(description["refusal"])
    found = read_json(directory / "measurement.json")[cpu_identity()]
    measured = {precision: Agreement(**values) for precision, values in found["agreement"].items()}
    if found["precision"] is None:
        raise EngineRefusedError(f"its vectors differ from sentence-transformers' ({measured['float32']})")
    return Export(directory, description["padding"], found["precision"], measured)


def _export(request: LoadRequest, directory: Path) -> None:
    """Writes the export beside its place and moves it there as a whole."""
    logger.info("exporting %s for OpenVINO; this happens once", request.name)
    partial = directory.with_name(f".partial-{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        write_whole(partial / "export.json", json.dumps(_write_files_or_refuse(request, partial), indent=1))
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files_or_refuse(request: LoadRequest, directory: Path) -> dict[str, Any]:
    """What export.json will say. That a graph cannot be exported is remembered; want of memory or disk is not."""
    from vectorize_pipelines.encoders.sentence_transformers import SentenceTransformersEncoder

    encoder = SentenceTransformersEncoder(request, "It is the reference for an export.")
    try:
        return _write_files(encoder, directory)
    except OSError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise EngineRefusedError(f"memory ran out while it was exported: {error}") from error
        logger.info("%s cannot be exported for OpenVINO", request.name, exc_info=True)
        reason = str(error).strip().partition("\n")[0]
        return {"refusal": f"its graph cannot be exported ({type(error).__name__}: {reason})"}
    finally:
        encoder.close()


def _write_files(encoder: "SentenceTransformersEncoder", directory: Path) -> dict[str, Any]:
    """Everything but the measurement; returns what export.json will say."""
    import numpy as np

    openvino = import_openvino()
    tokenizer = encoder.model.tokenizer
    source = tokenizer.backend_tokenizer.to_str()
    (directory / "tokenizer.json").write_text(source, encoding="utf-8")
    texts = sample_texts(encoder.spec.max_length)
    reference = [encoder.encode([text]) for text in texts]  # one by one: together all would be as long as the longest
    np.save(directory / "reference.npy", np.vstack(reference))
    openvino.save_model(_convert(encoder), directory / "model.xml", compress_to_fp16=False)
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    return {"padding": int(tokenizer.pad_token_id or 0), "sizes": sizes, "model": encoder.spec.fingerprint}


def _convert(encoder: "SentenceTransformersEncoder") -> Any:
    """The OpenVINO graph of all of the model's modules, from token ids and attention mask to vectors."""
    import numpy as np
    import torch

    from vectorize_pipelines.encoders.sentence_transformers import quiet

    class Modules(torch.nn.Module):
        """The model's own modules, one after the other, with tensors for input and output."""

        def __init__(self) -> None:
            super().__init__()
            self.stages = torch.nn.ModuleList(encoder.model.children())

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
            for stage in self.stages:
                features = stage(features)
            vectors: torch.Tensor = features["sentence_embedding"][:, : encoder.spec.dimension]
            return vectors

    # Two texts of different length: an example without padding would let the mask be traced away.
    features = encoder.model.preprocess(["an example", "a longer example that needs no padding"])
    example = (features["input_ids"], features["attention_mask"])
    shapes = [([-1, -1], np.int64), ([-1, -1], np.int64)]
    with quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every Python comparison in transformers
        graph = import_openvino().convert_model(Modules().eval(), example_input=example, input=shapes)
    if len(graph.inputs) != 2:
        raise ValueError(f"the traced graph has {len(graph.inputs)} inputs instead of token ids and attention mask")
    return graph


def _measure(request: LoadRequest, directory: Path) -> None:
    """Runs the sample in every native precision and keeps the result; the first that agrees will be used."""
    import numpy as np

    description = read_json(directory / "export.json")
    if "refusal" in description:
        return
    reference = np.load(directory / "reference.npy")
    tokenizer = export_tokenizer(request, directory)
    measured: dict[str, Any] = {"precision": None, "agreement": {}}
    for precision in reversed(native_precisions()):  # float32 first: where that differs nothing else can agree
        graph = Graph(
            directory / "model.xml",
            precision=precision,
            padding=description["padding"],
            dimension=request.spec.dimension,
        )
        agreement = compare(graph.encode(sample_texts(request.spec.max_length), tokenizer.ids), reference)
        graph.close()
        logger.info("%s in %s against sentence-transformers: %s", request.name, precision, agreement)
        measured["agreement"][precision] = asdict(agreement)
        if not agreement.equal:
            break
        measured["precision"] = precision
    known = read_json(directory / "measurement.json")
    write_whole(directory / "measurement.json", json.dumps({**known, cpu_identity(): measured}, indent=1))
