"""Engine `torch`: BERT-like encoders on CUDA, Apple's MPS and the CPU, over packed tokens in the chip's own precision.

Weights are read from safetensors and run by our own forward pass (`forward.py`), so transformers is imported
only the first time a model is used, for the vectors that it is held against (`precision.py`). Chosen by
`load_encoder` on CUDA and MPS, and on the CPU where OpenVINO refuses a model.
"""

from collections.abc import Sequence
from pathlib import Path

from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Metered, Purpose, TokenCount, Vectors
from vectorize_pipelines.encoders.batching import TokenBudget, remembered_budget
from vectorize_pipelines.encoders.engines.base import WORKING_BYTES, Engine, LoadRequest, require_texts
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.engines.reference import refusal_of_reference
from vectorize_pipelines.encoders.engines.torch.forward import PackedForward, activation_bytes, packed_forward
from vectorize_pipelines.encoders.engines.torch.pipeline import TorchPipeline
from vectorize_pipelines.encoders.engines.torch.precision import PART, fastest_equal, measured_folder
from vectorize_pipelines.encoders.engines.torch.weights import EncoderWeights, read_weights
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.hardware.devices import device_kind
from vectorize_pipelines.encoders.models.network import refusal, shape
from vectorize_pipelines.encoders.models.tokenizer import ModelTokenizer, model_tokenizer
from vectorize_pipelines.encoders.models.weights import count_parameters
from vectorize_pipelines.errors import UnknownModelError

#: Tokens of a batch. On the CPU as measured best for OpenVINO; the others keep a large chip busy and fit a small one.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}

#: What torch and the libraries around it take beside weights and batches, without those that make the reference.
LIBRARY_BYTES = 512 * 2**20


class TorchEngine(Engine):
    """The engine that runs a model's forward pass, pooling and normalisation included, over packed tokens in torch."""

    name = "torch"
    devices = frozenset({"cpu", "cuda", "mps"})
    extra = "torch"

    def refusal(self, request: LoadRequest) -> str | None:
        return refusal(request.layout) or refusal_of_reference(request, measured_folder(request))

    def measured_folder(self, request: LoadRequest) -> MeasuredFolder:
        return measured_folder(request)

    def memory_needed(self, request: LoadRequest) -> int:
        folder = measured_folder(request)
        precision = (folder.precisions(request.precision) or {PART: request.precision})[PART]
        on_cpu = device_kind(request.device) == "cpu"
        width = 2 if precision in {"bfloat16", "float16"} else 4  # auto may have to go on to float32
        full = 4 * count_parameters(self.weight_files(request))
        if not folder.complete:  # the reference is loaded first, on the CPU beside the weights that were read
            weights, libraries = (2 * full if on_cpu else full), WORKING_BYTES
        else:  # on the CPU those that are converted lie beside those that were read
            read = full if on_cpu and precision != "float32" else 0
            weights, libraries = full * width // 4 + read, LIBRARY_BYTES
        batch = activation_bytes(shape(request.layout.transformer_directory), _batch_tokens(request), width)
        return weights + batch + libraries

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        return TorchEncoder(request, reason)


class TorchEncoder(Encoder):
    """A model on one device."""

    def __init__(self, request: LoadRequest, reason: str) -> None:
        self.spec = request.spec
        self._tokenizer = _tokenizer(request)
        weights = _weights(request)
        precision = _precision(request, self._tokenizer, weights)
        forward = packed_forward(request.layout, weights, request.device, precision)
        budget = remembered_budget(self.spec.revision, request.device, _batch_tokens(request))
        self._pipeline = _pipeline(request, forward, budget)
        self._memory_bytes = forward.weights.memory_bytes
        folder = measured_folder(request)
        account = f"Held against {folder.reference} on this chip: {folder.account(PART, precision)}."
        self.choice = EngineChoice(
            TorchEngine.name, request.device, precision, f"{reason} {account} Attention is {forward.attention}."
        )

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        return self.encode_metered(items, purpose).vectors

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Metered:
        texts = require_texts(items, self.spec.name)
        counts: dict[str, TokenCount] = {}
        vectors = self._pipeline.encode(texts, lambda window: self._ids(window, purpose, counts))
        return Metered(vectors, {}, None, counts=[counts[text] for text in texts])

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        return [len(ids) for ids in self._ids(texts, purpose)]

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def close(self) -> None:
        self._pipeline.close()

    def _ids(
        self, texts: Sequence[str], purpose: Purpose, counts: dict[str, TokenCount] | None = None
    ) -> list[list[int]]:
        return self._tokenizer.ids(texts, self.spec.query_prompt if purpose == "query" else self.spec.prompt, counts)


def _tokenizer(request: LoadRequest) -> ModelTokenizer:
    tokenizer = model_tokenizer(request.layout, cache_directory=request.cache_directory, revision=request.spec.revision)
    if not all(tokenizer.ids([""])):
        raise EngineRefusedError("its tokenizer gives an empty text no token, which packing cannot represent")
    return tokenizer


def _weights(request: LoadRequest) -> EncoderWeights:
    from safetensors import SafetensorError

    try:
        return read_weights(request.layout.transformer_directory)
    except KeyError as error:
        raise EngineRefusedError(f"its weights lack {error}") from error
    except (OSError, SafetensorError) as error:
        raise UnknownModelError(f"the model {request.name} cannot be loaded: {error}") from error


def _precision(request: LoadRequest, tokenizer: ModelTokenizer, weights: EncoderWeights) -> str:
    def encode(precision: str, texts: list[str]) -> Vectors:
        budget = TokenBudget(_batch_tokens(request))
        pipeline = _pipeline(request, packed_forward(request.layout, weights, request.device, precision), budget)
        try:
            return pipeline.encode(texts, tokenizer.ids)
        finally:
            pipeline.close()

    return fastest_equal(request, encode)


def _batch_tokens(request: LoadRequest) -> int:
    return request.batch_tokens(BATCH_TOKENS[device_kind(request.device)])


def _pipeline(request: LoadRequest, forward: PackedForward, budget: TokenBudget) -> TorchPipeline:
    return TorchPipeline(
        forward,
        device=request.device,
        budget=budget,
        padding=forward.weights.padding,
        dimension=request.spec.dimension,
    )
