"""Engine `open_clip`: CLIP models, which put images and texts into one space. Chosen by `load_encoder`.

    path, bytes ──▶ [processes] decode, scale, crop ▶ [one thread a stream] image tower ──▶ vectors
    text ─────────▶ tokenize ──────────────────────▶ [one thread a stream] text tower ───▶ vectors

On the CPU the towers run in OpenVINO, one stream a core, from an export that later processes load without torch.
On CUDA and MPS they run in torch, in 16 bits where that was measured equal to float32. That path has been run on
a CPU only, never on CUDA or MPS.
"""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from vectorize_pipelines.core.image_limits import ImageLimits
from vectorize_pipelines.encoders.base import (
    CountTokens,
    Encoder,
    EncoderSpec,
    EngineChoice,
    Metered,
    Purpose,
    TokenCount,
    Vectors,
)
from vectorize_pipelines.encoders.batching import TokenBatch, TokenBudget, out_of_memory, token_batches
from vectorize_pipelines.encoders.engines.base import Engine, LoadRequest, named
from vectorize_pipelines.encoders.engines.equality import Agreement, compare
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.engines.open_clip.export import (
    TOWERS,
    export_folder,
    load_model,
    make_export,
    measured_precisions,
    padded,
    reference_vectors,
    sample_ids,
    sample_pixels,
    takes_short_texts,
    tower_modules,
)
from vectorize_pipelines.encoders.engines.open_clip.tokenizer import TextTokenizer, clip_tokenizer
from vectorize_pipelines.encoders.engines.openvino_runtime import compiled, openvino_memory, scaled_to_unit_length
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.hardware.devices import device_kind, torch_precisions
from vectorize_pipelines.encoders.hardware.machine import physical_cores
from vectorize_pipelines.encoders.models.locate import LocatedModel, hub_caches
from vectorize_pipelines.encoders.models.open_clip import ClipModel, locate_clip, recognises
from vectorize_pipelines.encoders.models.tokenizer import ModelTokenizer
from vectorize_pipelines.encoders.models.weights import count_parameters
from vectorize_pipelines.errors import ItemError, UnknownModelError
from vectorize_pipelines.images.pool import ImageDecoders
from vectorize_pipelines.images.preprocessing import Pixels

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Images, and tokens of texts, that go through a tower together. On a CPU larger batches gain nothing.
CPU_IMAGES, CPU_TOKENS = 8, 1024
ACCELERATOR_IMAGES, ACCELERATOR_TOKENS = 128, 16384

#: What `open_clip.create_model` calls a precision.
OPEN_CLIP_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

#: Positions among the caller's items, and what the tower takes for them.
_Batch: TypeAlias = "tuple[list[int], npt.NDArray[np.generic]]"

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class OpenClipEngine(Engine):
    """The engine of open_clip: names of OpenAI's CLIP, of open_clip's weights, repositories, folders."""

    name = "open_clip"
    devices = frozenset({"cpu", "cuda", "mps"})
    exclusive = True
    extra = "clip"

    def recognises(self, model: str) -> bool:
        return recognises(model)

    def describe(self, request: LoadRequest) -> EncoderSpec:
        return _located(request).spec(request.cache_directory)

    def locate(self, request: LoadRequest) -> LocatedModel:
        model = _located(request)
        cached = any(model.weights.is_relative_to(cache) for cache in hub_caches())
        return LocatedModel(model.name, model.weights, "cache" if cached else "directory")

    def tokenizer(self, request: LoadRequest) -> ModelTokenizer:
        raise UnknownModelError(
            f"{request.name} is a CLIP model: its tokenizer rewrites a text before it takes it apart, so it cannot say "
            "where in the text a token stands, and documents cannot be cut for it; choose a text model for documents"
        )

    def count_tokens(self, request: LoadRequest) -> CountTokens:
        return clip_tokenizer(_located(request)).counts

    def weight_files(self, request: LoadRequest) -> list[Path]:
        return [_located(request).weights]

    def memory_needed(self, request: LoadRequest) -> int:
        folder = self.measured_folder(request)
        if folder is None:
            return super().memory_needed(request)
        return openvino_memory(count_parameters(self.weight_files(request)), exported=folder.complete)

    def measured_folder(self, request: LoadRequest) -> MeasuredFolder | None:
        if device_kind(request.device) != "cpu":
            return None
        return export_folder(self.describe(request).revision, request.cache_directory)

    def refusal(self, request: LoadRequest) -> str | None:
        del request  # whatever open_clip loads, it runs
        return None

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        """Return the model. On the CPU torch runs it where OpenVINO does not reproduce it, and the choice says so."""
        model = _located(request)
        spec = model.spec(request.cache_directory)
        towers: Towers
        if device_kind(request.device) == "cpu":
            try:
                towers = OpenVinoTowers(model, spec.revision, request)
            except (EngineRefusedError, OSError) as error:  # OSError: a cache that is read-only or full
                if request.precision not in {"auto", "float32"}:
                    raise EngineRefusedError(str(error)) from error
                towers = TorchTowers(model, request)
                towers.account = f"torch runs it, because OpenVINO does not: {error}."
        else:
            towers = TorchTowers(model, request)
        choice = EngineChoice(self.name, request.device, towers.precision, f"{reason} {towers.account}")
        return OpenClipEncoder(model, towers, spec, choice, request.image_limits, request.decoding_threads)


def _located(request: LoadRequest) -> ClipModel:
    return locate_clip(
        request.name, request.cache_directory, fetch=request.fetch, pickled_weights=request.pickled_weights
    )


class Towers(ABC):
    """A CLIP model's two towers on one device.

    precision      of the towers, for people
    account        a sentence for people: what runs them
    workers        batches that the device computes at a time
    images, tokens what one batch may hold
    short_texts    whether the text tower takes texts without their padding
    memory_bytes   that the weights take
    """

    precision: str
    account: str
    workers: int
    images: int
    tokens: int
    short_texts: bool
    memory_bytes: int

    @abstractmethod
    def run(self, tower: str, batch: "npt.NDArray[np.generic]") -> Vectors:
        """Return unit vectors (n, dimension), float32, of uint8 pixels (n, height, width, 3) for the tower `image`, of
        int64 token ids (n, length) for `text`. Called by several threads at once."""

    @abstractmethod
    def is_out_of_memory(self, error: Exception) -> bool:
        """Return whether `run` raised this because the batch was too large; frees what can be freed."""

    @abstractmethod
    def close(self) -> None:
        """Free the weights."""


class OpenVinoTowers(Towers):
    """The towers on the CPU. A tower is loaded when it is first used: a search needs no image tower."""

    images = CPU_IMAGES

    def __init__(self, model: ClipModel, revision: str, request: LoadRequest) -> None:
        self._folder = export_folder(revision, request.cache_directory)
        make_export(model, revision, self._folder)
        self._lock = threading.Lock()
        self._compiled: dict[str, Any] = {}
        self._requests = threading.local()
        self.workers = physical_cores()
        self.tokens = request.batch_tokens(CPU_TOKENS)
        self._precisions = measured_precisions(self._folder, request.precision, self._compile)
        self.precision = named(self._precisions)
        near = "; ".join(
            f"{tower} tower in {self._folder.account(tower, each)}" for tower, each in self._precisions.items()
        )
        self.account = f"OpenVINO runs it, equal to open_clip on this CPU ({near})."
        self.short_texts = bool(self._folder.description.get("short_texts"))

    @property
    def memory_bytes(self) -> int:  # type: ignore[override]
        sizes = {tower: (self._folder.directory / f"{tower}.bin").stat().st_size for tower in self._compiled}
        return sum(size if self._precisions[tower] == "float32" else size // 2 for tower, size in sizes.items())

    def run(self, tower: str, batch: "npt.NDArray[np.generic]") -> Vectors:
        requests = self._requests.__dict__
        if tower not in requests:
            requests[tower] = self._tower(tower).create_infer_request()
        result: Vectors = requests[tower].infer([batch], share_inputs=True)[0]
        return scaled_to_unit_length(result, self._precisions[tower])

    def is_out_of_memory(self, error: Exception) -> bool:
        return out_of_memory(error)

    def close(self) -> None:
        self._compiled.clear()

    def _tower(self, tower: str) -> Any:
        with self._lock:
            if tower not in self._compiled:
                self._compiled[tower] = self._compile(tower, self._precisions[tower])
            return self._compiled[tower]

    def _compile(self, tower: str, precision: str) -> Any:
        # The decoding processes use the same cores.
        return compiled(self._folder.directory / f"{tower}.xml", precision, self.workers, ENABLE_CPU_PINNING=False)


class TorchTowers(Towers):
    """The towers in torch: on CUDA and MPS, and on a CPU where OpenVINO does not reproduce the model."""

    account = "torch runs it."
    workers = 1

    def __init__(self, model: ClipModel, request: LoadRequest) -> None:
        self._device = request.device
        on_cpu = device_kind(request.device) == "cpu"
        self.images, tokens = (CPU_IMAGES, CPU_TOKENS) if on_cpu else (ACCELERATOR_IMAGES, ACCELERATOR_TOKENS)
        self.tokens = request.batch_tokens(tokens)
        loaded = load_model(model)
        self.short_texts = takes_short_texts(loaded)
        self.precision, self._modules = _fastest_equal(model, loaded, request)

    @property
    def memory_bytes(self) -> int:  # type: ignore[override]
        parameters = {id(each): each for module in self._modules.values() for each in module.parameters()}
        return sum(each.numel() * each.element_size() for each in parameters.values())

    def run(self, tower: str, batch: "npt.NDArray[np.generic]") -> Vectors:
        return _run_module(self._modules[tower], batch, self._device)

    def is_out_of_memory(self, error: Exception) -> bool:
        if not out_of_memory(error):
            return False
        _free(self._device)
        return True

    def close(self) -> None:
        self._modules = {}
        _free(self._device)


def _fastest_equal(model: ClipModel, loaded: Any, request: LoadRequest) -> tuple[str, dict[str, Any]]:
    """Return the precision to run in, and the towers in it: the fastest whose vectors of the samples equal float32's.

    Raises `EngineRefusedError` with the figures where the precision that was asked for is not equal.
    """
    samples: dict[str, Any] = {"image": sample_pixels(model.preprocessing), "text": sample_ids(model)}
    wanted = {tower: reference_vectors(loaded, tower, samples[tower], model.preprocessing) for tower in TOWERS}
    precision = torch_precisions(request.device)[0] if request.precision == "auto" else request.precision
    if precision != "float32":
        name = OPEN_CLIP_PRECISIONS[precision]
        modules = tower_modules(load_model(model, request.device, name), model.preprocessing, name)
        found: dict[str, Agreement] = {
            tower: compare(_run_module(modules[tower], samples[tower], request.device), wanted[tower])
            for tower in TOWERS
        }
        if all(agreement.equal for agreement in found.values()):
            return precision, modules
        if request.precision != "auto":
            figures = "; ".join(f"{tower} tower: {agreement}" for tower, agreement in found.items())
            raise EngineRefusedError(f"its vectors in {precision} are not equal to the model's own ({figures})")
    return "float32", tower_modules(loaded.to(request.device), model.preprocessing)


def _run_module(module: Any, batch: "npt.NDArray[np.generic]", device: str) -> Vectors:
    import torch

    with torch.inference_mode():
        vectors: Vectors = module(torch.from_numpy(batch).to(device)).cpu().numpy()
    return vectors


def _free(device: str) -> None:
    import torch

    if device_kind(device) == "cuda":
        torch.cuda.empty_cache()
    elif device_kind(device) == "mps":
        torch.mps.empty_cache()


class OpenClipEncoder(Encoder):
    """A loaded CLIP model.

    decoding_threads  images decoded side by side, each in a process; None: one a core
    """

    def __init__(
        self,
        model: ClipModel,
        towers: Towers,
        spec: EncoderSpec,
        choice: EngineChoice,
        limits: ImageLimits,
        decoding_threads: int | None,
    ) -> None:
        self.spec = spec
        self.choice = choice
        self._model = model
        self._towers = towers
        self._images = TokenBudget(towers.images)
        self._tokens = TokenBudget(towers.tokens)
        self._decoders = ImageDecoders(limits, decoding_threads or physical_cores())
        self._runners = ThreadPoolExecutor(towers.workers, thread_name_prefix="vectorize-clip")
        self._tokenizer: TextTokenizer | None = None

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        """Encode as `Encoder.encode`; raise the error of the first image that cannot be decoded, naming the item."""
        vectors, failures = self.encode_each(items, purpose)
        for position in sorted(failures):
            item, error = items[position], failures[position]
            name = f"item {position} ({item})" if isinstance(item, Path) else f"item {position}"
            raise type(error)(f"{name}: {error}") from error
        return vectors

    def encode_each(
        self, items: Sequence[str | Path | bytes], purpose: Purpose = "document"
    ) -> tuple[Vectors, dict[int, ItemError]]:
        import numpy as np

        del purpose  # CLIP knows no prompts
        vectors = np.full((len(items), self.spec.dimension), np.nan, dtype=np.float32)
        failures: dict[int, ItemError] = {}
        texts = {position: item for position, item in enumerate(items) if isinstance(item, str)}
        images = {position: item for position, item in enumerate(items) if not isinstance(item, str)}
        work = (self._text_batches(texts), self._image_batches(images, failures))
        for tower, budget, batches in zip(("text", "image"), (self._tokens, self._images), work, strict=True):
            run = partial(self._run, tower, budget)
            for future in _ahead(partial(self._runners.submit, run), batches, self._towers.workers + 1):
                positions, found = future.result()
                vectors[positions] = found
        return vectors, failures

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Metered:
        vectors, failures = self.encode_each(items, purpose)
        texts = [item for item in items if isinstance(item, str)]
        found = iter(self._text_tokenizer().counts(texts) if texts else ())
        counts = [next(found) if isinstance(item, str) else TokenCount(0, 0) for item in items]
        return Metered(vectors, failures, None, counts=counts)

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        del purpose  # CLIP knows no prompts
        return [len(ids) for ids in self._text_tokenizer().ids(texts)]

    @property
    def memory_bytes(self) -> int:
        return self._towers.memory_bytes

    def close(self) -> None:
        self._decoders.close()
        self._runners.shutdown()
        self._towers.close()

    def _text_tokenizer(self) -> TextTokenizer:
        if self._tokenizer is None:
            self._tokenizer = clip_tokenizer(self._model)
        return self._tokenizer

    def _text_batches(self, texts: Mapping[int, str]) -> Iterator[_Batch]:
        """Yield token ids, and where their texts stand among the items."""
        if not texts:
            return
        positions, tokenize = list(texts), self._text_tokenizer().ids
        for batch in token_batches(list(texts.values()), tokenize, self._tokens, streams=self._towers.workers):
            yield [positions[each] for each in batch.positions], padded(batch, self._length(batch))

    def _length(self, batch: TokenBatch) -> int:
        return max(len(ids) for ids in batch.ids) if self._towers.short_texts else self._model.context_length

    def _image_batches(self, images: Mapping[int, Path | bytes], failures: dict[int, ItemError]) -> Iterator[_Batch]:
        """Yield pixels, and where their images stand among the items. What cannot be decoded is put into `failures`."""
        import numpy as np

        share = -(-len(images) // self._towers.workers)  # few images are spread over the streams
        depth = min(self._images.tokens, share) * (self._towers.workers + 1)
        taken: list[int] = []
        pixels: list[Pixels] = []
        decode = partial(self._decoders.submit, preprocessing=self._model.preprocessing)
        for position, future in zip(images, _ahead(decode, images.values(), depth), strict=True):
            try:
                pixels.append(future.result())
                taken.append(position)
            except ItemError as error:
                failures[position] = error
            if len(pixels) >= min(self._images.tokens, share):
                yield taken, np.stack(pixels)
                taken, pixels = [], []
        if pixels:
            yield taken, np.stack(pixels)

    def _run(self, tower: str, budget: TokenBudget, batch: _Batch) -> tuple[list[int], Vectors]:
        positions, values = batch
        return positions, self._halving(tower, budget, values)

    def _halving(self, tower: str, budget: TokenBudget, values: "npt.NDArray[np.generic]") -> Vectors:
        """Return the batch's vectors; a batch that runs out of memory is split until its parts fit."""
        import numpy as np

        try:
            vectors = self._towers.run(tower, values)
        except Exception as error:
            if len(values) == 1 or not self._towers.is_out_of_memory(error):
                raise
        else:
            budget.succeeded()
            return vectors
        budget.failed(len(values) * (values.shape[1] if tower == "text" else 1))
        middle = (len(values) + 1) // 2
        return np.concatenate([self._halving(tower, budget, part) for part in (values[:middle], values[middle:])])


def _ahead(
    submit: Callable[[_Argument], Future[_Result]], arguments: Iterable[_Argument], depth: int
) -> Iterator[Future[_Result]]:
    """Yield the futures of `submit` for each argument, in order, `depth` submitted before they are asked for."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for argument in arguments:
            waiting.append(submit(argument))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
