"""Exporting a model to OpenVINO, once: graph, tokenizer, and proof that both give the model's own vectors.

An export is a `MeasuredFolder` in `<cache directory>/exports/`, with these files beside its own:

    model.xml, model.bin  the graph, pooling and normalisation included
    tokenizer.json        the tokenizer as sentence-transformers uses it
    reference.npy         the model's own float32 vectors of `equality.sample_texts` (`reference.py`)

torch, transformers and sentence_transformers are imported only while an export is made. Where they are not installed
the graph is made from the weights (`build.py`). Called by the `openvino` engine.
"""

import hashlib
import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.batching import out_of_memory
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.equality import Agreement, compare, sample_texts
from vectorize_pipelines.encoders.engines.measured_folder import NUMPY_REFERENCE, MeasuredFolder
from vectorize_pipelines.encoders.engines.openvino.graph import Graph
from vectorize_pipelines.encoders.engines.openvino_runtime import import_openvino, native_precisions
from vectorize_pipelines.encoders.engines.reference import (
    discard_numpys,
    is_numpys,
    measured_against,
    numpy_reference,
)
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.models.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from vectorize_pipelines.encoders.engines.sentence_transformers_encoder import SentenceTransformersEncoder

logger = logging.getLogger(__name__)

#: Part of every export's key: raised whenever the graph, the sample or the files change.
EXPORT_VERSION = 3

#: What a measurement calls the one graph of an export.
PART = "text"


@dataclass(frozen=True, slots=True)
class Export:
    """An export on disk that is fit for use on this machine.

    folder     where it lies
    padding    token id that fills up shorter texts
    precision  in which it is to be run here
    """

    folder: MeasuredFolder
    padding: int
    precision: str

    @property
    def weights_bytes(self) -> int:
        """The size of the weights on disk, which are float32."""
        return (self.folder.directory / "model.bin").stat().st_size

    def __str__(self) -> str:
        """Return what was measured."""
        return f"Held against {self.folder.reference} on this CPU: {self.folder.account(PART, self.precision)}."


def exported(request: LoadRequest) -> Export:
    """Return the export of a model, made or measured now where that has not happened yet.

    Safe when several processes start at once: one works, the others wait for it. Raises `EngineRefusedError`
    where the model cannot be exported or its export does not give its vectors, and `UnknownModelError` where
    the model cannot be loaded at all.
    """
    folder = export_folder(request)
    try:
        write = _build_files if is_numpys(folder) else _write_files_or_refuse
        folder.make(lambda partial: write(request, partial))
        discard_numpys(folder)
        description = folder.description
        if "refusal" in description:
            raise EngineRefusedError(description["refusal"])
        precision = folder.fastest_equal(
            PART,
            request.precision,
            native_precisions(),
            lambda precision: _measured(request, folder, description["padding"], precision),
        )
    except OSError as error:
        raise EngineRefusedError(f"its export to {folder.directory} failed: {error}") from error
    return Export(folder, description["padding"], precision)


def export_folder(request: LoadRequest) -> MeasuredFolder:
    """Return where the export of a model lies. The key is its content: the same weights under two names share one.

    One that was traced with sentence-transformers is preferred to one that was made without.
    """
    spec = request.spec
    decisive = f"{EXPORT_VERSION} {version('openvino')} {spec.max_length} {spec.dimension} {spec.pooling}"
    key = f"{spec.revision}-{hashlib.blake2b(decisive.encode(), digest_size=4).hexdigest()}"
    return measured_against(MeasuredFolder(request.cache_directory / "exports" / key, "openvino", "cpu"))


def export_tokenizer(request: LoadRequest, directory: Path) -> ModelTokenizer:
    """Return the tokenizer of an export; it needs no lower-casing of ours, which the exported one does itself."""
    source = (directory / "tokenizer.json").read_text(encoding="utf-8")
    return ModelTokenizer(source, max_length=request.spec.max_length, prompt=request.spec.prompt)


def _write_files_or_refuse(request: LoadRequest, directory: Path) -> dict[str, Any]:
    """Write the files; return description.json. A graph that cannot be exported is noted; want of space is not."""
    from vectorize_pipelines.encoders.engines.sentence_transformers_encoder import SentenceTransformersEncoder

    logger.info("exporting %s for OpenVINO; this happens once", request.name)
    encoder = SentenceTransformersEncoder(request, "It is the reference for an export.")
    described = {"model": request.spec.name, "revision": request.spec.revision, "engine": "openvino"}
    try:
        return {**described, "padding": _write_files(encoder, directory)}
    except OSError:
        raise
    except Exception as error:
        _raise_if_out_of_memory(error)
        logger.info("%s cannot be exported for OpenVINO", request.name, exc_info=True)
        return {**described, "refusal": _no_graph(error)}
    finally:
        encoder.close()


def _build_files(request: LoadRequest, directory: Path) -> dict[str, Any]:
    """Write the same files without sentence-transformers."""
    import numpy as np

    from vectorize_pipelines.encoders.engines.openvino.build import build_graph

    logger.info("building %s for OpenVINO; this happens once", request.name)
    described = {"model": request.spec.name, "revision": request.spec.revision, "engine": "openvino"}
    reference = numpy_reference(request)
    (directory / "tokenizer.json").write_text(reference.tokenizer.to_json(), encoding="utf-8")
    np.save(directory / "reference.npy", reference.vectors)
    try:
        graph = build_graph(reference.network, request.layout)
        import_openvino().save_model(graph, directory / "model.xml", compress_to_fp16=False)
    except OSError:
        raise
    except Exception as error:
        _raise_if_out_of_memory(error)
        logger.info("%s cannot be exported for OpenVINO", request.name, exc_info=True)
        return {**described, "refusal": _no_graph(error)}
    return {**described, "padding": reference.network.padding or 0, "reference": NUMPY_REFERENCE}


def _raise_if_out_of_memory(error: Exception) -> None:
    if out_of_memory(error):
        raise EngineRefusedError(f"memory ran out while it was exported: {error}") from error


def _no_graph(error: Exception) -> str:
    """Return the refusal that is remembered of a graph that could not be made."""
    reason = str(error).strip().partition("\n")[0]
    return f"its graph cannot be exported ({type(error).__name__}: {reason})"


def _write_files(encoder: "SentenceTransformersEncoder", directory: Path) -> int:
    """Write the graph, the tokenizer and the reference; return the token id that fills up shorter texts."""
    import numpy as np

    openvino = import_openvino()
    tokenizer = encoder.model.tokenizer
    source = tokenizer.backend_tokenizer.to_str()
    (directory / "tokenizer.json").write_text(source, encoding="utf-8")
    np.save(directory / "reference.npy", encoder.sample_vectors())
    openvino.save_model(_convert(encoder), directory / "model.xml", compress_to_fp16=False)
    return int(tokenizer.pad_token_id or 0)


def _convert(encoder: "SentenceTransformersEncoder") -> Any:
    """Return the OpenVINO graph of all of the model's modules, from token ids and attention mask to vectors."""
    import numpy as np
    import torch

    from vectorize_pipelines.encoders.engines.sentence_transformers_encoder import quiet

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


def _measured(request: LoadRequest, folder: MeasuredFolder, padding: int, precision: str) -> Agreement:
    """Return how near the export's vectors of the sample come to the model's own in this precision, here."""
    import numpy as np

    tokenizer = export_tokenizer(request, folder.directory)
    graph = Graph(
        folder.directory / "model.xml",
        precision=precision,
        padding=padding,
        dimension=request.spec.dimension,
        normalized=request.spec.normalized,
        max_length=request.spec.max_length,
    )
    try:
        vectors = graph.encode(sample_texts(request.spec.max_length), tokenizer.ids)
    finally:
        graph.close()
    return compare(vectors, np.load(folder.directory / "reference.npy"))
