"""Engine `openvino`: any BERT-like encoder on the CPU, several times as fast as sentence-transformers.

The model is exported once (`export.py`); afterwards neither torch nor transformers is imported, only `openvino`
and `tokenizers`. Without sentence-transformers the encoders of `models/network.py` are exported all the same. Chosen by
`load_encoder` for the device cpu.
"""

from collections.abc import Sequence
from pathlib import Path

from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Metered, Purpose, TokenCount, Vectors
from vectorize_pipelines.encoders.batching import out_of_memory
from vectorize_pipelines.encoders.engines.base import Engine, LoadRequest, require_texts
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.engines.openvino.export import Export, export_folder, export_tokenizer, exported
from vectorize_pipelines.encoders.engines.openvino.graph import BATCH_TOKENS, Graph
from vectorize_pipelines.encoders.engines.openvino_runtime import openvino_memory
from vectorize_pipelines.encoders.engines.reference import refusal_of_reference
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.models.weights import count_parameters

#: Modules of sentence-transformers that compute from token ids and attention mask alone.
TRACEABLE_MODULES = frozenset({"Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"})


class OpenVinoEngine(Engine):
    """The engine that runs a model's whole graph, pooling and normalisation included, in OpenVINO."""

    name = "openvino"
    devices = frozenset({"cpu"})

    def refusal(self, request: LoadRequest) -> str | None:
        layout = request.layout
        foreign = [module for module in layout.modules if module not in TRACEABLE_MODULES]
        if foreign:
            return f"it does not cover the module {foreign[0]}"
        if layout.modules[0] != "Transformer" or "Pooling" not in layout.modules:
            return "it covers transformers followed by pooling"
        if not layout.pool_prompt and (layout.prompt or layout.query_prompt):
            return "it does not cover pooling that leaves the prompt out"
        return refusal_of_reference(request, export_folder(request))

    def measured_folder(self, request: LoadRequest) -> MeasuredFolder:
        return export_folder(request)

    def memory_needed(self, request: LoadRequest) -> int:
        parameters = count_parameters(self.weight_files(request))
        return openvino_memory(parameters, exported=export_folder(request).complete)

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        folder = export_folder(request)
        try:
            return OpenVinoEncoder(request, exported(request), reason)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            folder.discard()  # OpenVINO cannot read what lies there
        try:
            return OpenVinoEncoder(request, exported(request), reason)
        except RuntimeError as error:
            raise EngineRefusedError(f"OpenVINO cannot run its export: {error}") from error


class OpenVinoEncoder(Encoder):
    """A model exported to OpenVINO."""

    def __init__(self, request: LoadRequest, export: Export, reason: str) -> None:
        self.spec = request.spec
        self._tokenizer = export_tokenizer(request, export.folder.directory)
        self._graph = Graph(
            export.folder.directory / "model.xml",
            precision=export.precision,
            padding=export.padding,
            dimension=self.spec.dimension,
            normalized=self.spec.normalized,
            max_length=self.spec.max_length,
            batch_tokens=request.batch_tokens(BATCH_TOKENS),
        )
        weights = export.weights_bytes
        self._memory_bytes = weights if export.precision == "float32" else weights // 2
        self.choice = EngineChoice(OpenVinoEngine.name, request.device, export.precision, f"{reason} {export}")

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        return self.encode_metered(items, purpose).vectors

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Metered:
        texts = require_texts(items, self.spec.name)
        counts: dict[str, TokenCount] = {}
        vectors = self._graph.encode(texts, lambda window: self._ids(window, purpose, counts))
        return Metered(vectors, {}, None, counts=[counts[text] for text in texts])

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        return [len(ids) for ids in self._ids(texts, purpose)]

    @property
    def streams(self) -> int:
        return self._graph.streams

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def close(self) -> None:
        self._graph.close()

    def _ids(
        self, texts: Sequence[str], purpose: Purpose, counts: dict[str, TokenCount] | None = None
    ) -> list[list[int]]:
        return self._tokenizer.ids(texts, self.spec.query_prompt if purpose == "query" else self.spec.prompt, counts)
