"""Engine `open_clip`: CLIP models, which put images and texts into one space. Chosen by `load_encoder`.

    path, bytes ──▶ [threads] decode, scale, crop ──▶ [one thread a stream] image tower ──▶ vectors
    text ─────────▶ tokenize ──────────────────────▶ [one thread a stream] text tower ───▶ vectors

On the CPU the towers run in OpenVINO, one stream a core, from an export that later processes load without torch.
On CUDA and MPS they run in torch, in 16 bits where that was measured equal to float32. That path has been run on
a CPU only, never on CUDA or MPS.
"""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from vectorize_pipelines.encoders.batching import TokenBatch, TokenBudget, out_of_memory, token_batches
from vectorize_pipelines.encoders.devices import device_kind
from vectorize_pipelines.encoders.engines import Engine, LoadRequest
from vectorize_pipelines.encoders.equality import compare
from vectorize_pipelines.encoders.machine import physical_cores
from vectorize_pipelines.encoders.open_clip_export import (
    TOWERS,
    NotReproducedError,
    export_folder,
    load_model,
    measured_precisions,
    padded,
    reference_vectors,
    sample_ids,
    sample_pixels,
    takes_short_texts,
    takes_short_texts_exported,
    tower_modules,
)
from vectorize_pipelines.encoders.open_clip_models import ClipModel, locate_clip, recognises
from vectorize_pipelines.encoders.open_clip_tokenizer import TextTokenizer, clip_tokenizer
from vectorize_pipelines.encoders.openvino_graph import PRECISION_HINTS, import_openvino
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec, EngineChoice, Purpose, Vectors
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.images.decoding import DEFAULT_LIMITS, ImageLimits, decode
from vectorize_pipelines.images.preprocessing import Pixels

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Images, and tokens of texts, that go through a tower together. On a CPU larger batches gain nothing.
CPU_IMAGES, CPU_TOKENS = 8, 1024
ACCELERATOR_IMAGES, ACCELERATOR_TOKENS = 128, 16384

#: Positions among the caller's items, and what the tower takes for them.
_Batch: TypeAlias = "tuple[list[int], npt.NDArray[np.generic]]"

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class OpenClipEngine(Engine):
    """Runs what open_clip runs: names of OpenAI's CLIP, of open_clip's weights, repositories, folders."""

    name = "open_clip"
    devices = frozenset({"cpu", "cuda", "mps"})

    def recognises(self, model: str) -> bool:
        return recognises(model)

    def describe(self, request: LoadRequest) -> EncoderSpec:
        return locate_clip(request.name, request.cache_directory).spec(request.cache_directory)

    def refusal(self, request: LoadRequest) -> str | None:
        del request  # whatever open_clip loads, it runs
        return None

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        """The model. On the CPU torch runs it where OpenVINO does not reproduce it, and the choice says so."""
        model = locate_clip(request.name, request.cache_directory)
        spec = model.spec(request.cache_directory)
        towers: Towers
        if device_kind(request.device) == "cpu":
            try:
                towers = OpenVinoTowers(model, spec.revision, request.cache_directory)
            except (NotReproducedError, OSError) as error:  # OSError: a cache that is read-only or full
                towers = TorchTowers(model, request.device)
                towers.account = f"torch runs it, because OpenVINO does not: {error}."
        else:
            towers = TorchTowers(model, request.device)
        choice = EngineChoice(self.name, request.device, towers.precision, f"{reason} {towers.account}")
        return OpenClipEncoder(model, towers, spec, choice)


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
        """Unit vectors (n, dimension), float32, of uint8 pixels (n, height, width, 3) for the tower `image`, of
        int64 token ids (n, length) for `text`. Called by several threads at once."""

    @abstractmethod
    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether `run` raised this because the batch was too large; frees what can be freed."""

    @abstractmethod
    def close(self) -> None:
        """Frees the weights."""


class OpenVinoTowers(Towers):
    """The towers on the CPU. A tower is loaded when it is first used: a search needs no image tower."""

    images, tokens = CPU_IMAGES, CPU_TOKENS

    def __init__(self, model: ClipModel, revision: str, cache_directory: Path) -> None:
        self._folder = export_folder(model, revision, cache_directory)
        self._lock = threading.Lock()
        self._compiled: dict[str, Any] = {}
        self._requests = threading.local()
        self.workers = physical_cores()
        measured = measured_precisions(self._folder, self._compile)
        self._precisions = {tower: precision for tower, (precision, _) in measured.items()}
        self.precision = _named(self._precisions)
        near = "; ".join(
            f"{tower} tower in {precision}, {agreement}" for tower, (precision, agreement) in measured.items()
        )
        self.account = f"OpenVINO runs it, equal to open_clip on this CPU ({near})."
        self.short_texts = takes_short_texts_exported(self._folder)

    @property
    def memory_bytes(self) -> int:  # type: ignore[override]
        sizes = {tower: (self._folder / f"{tower}.bin").stat().st_size for tower in self._compiled}
        return sum(size if self._precisions[tower] == "float32" else size // 2 for tower, size in sizes.items())

    def run(self, tower: str, batch: "npt.NDArray[np.generic]") -> Vectors:
        requests = self._requests.__dict__
        if tower not in requests:
            requests[tower] = self._tower(tower).create_infer_request()
        result: Vectors = requests[tower].infer([batch], share_inputs=True)[0]
        return result

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
        settings = {
            "NUM_STREAMS": self.workers,
            "INFERENCE_NUM_THREADS": self.workers,
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
            "ENABLE_CPU_PINNING": False,  # the decoding threads use the same cores
        }
        return import_openvino().Core().compile_model(self._folder / f"{tower}.xml", "CPU", settings)


def _named(precisions: Mapping[str, str]) -> str:
    """`bf16`, or `image float32, text bf16` where the towers differ."""
    if len(set(precisions.values())) == 1:
        return next(iter(precisions.values()))
    return ", ".join(f"{tower} {precision}" for tower, precision in precisions.items())


class TorchTowers(Towers):
    """The towers in torch: on CUDA and MPS, and on a CPU where OpenVINO does not reproduce the model."""

    account = "torch runs it."
    workers = 1

    def __init__(self, model: ClipModel, device: str) -> None:
        self._device = device
        on_cpu = device_kind(device) == "cpu"
        self.images, self.tokens = (CPU_IMAGES, CPU_TOKENS) if on_cpu else (ACCELERATOR_IMAGES, ACCELERATOR_TOKENS)
        loaded = load_model(model)
        self.short_texts = takes_short_texts(loaded)
        self.precision, self._modules = _fastest_equal(model, loaded, device)

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


def _fastest_equal(model: ClipModel, loaded: Any, device: str) -> tuple[str, dict[str, Any]]:
    """Name of the fastest precision on `device` whose vectors of the samples equal float32's, and its towers."""
    samples: dict[str, Any] = {"image": sample_pixels(model.preprocessing), "text": sample_ids(model)}
    wanted = {tower: reference_vectors(loaded, tower, samples[tower], model.preprocessing) for tower in TOWERS}
    precision = _fast_precision(device)
    if precision is not None:
        modules = tower_modules(load_model(model, device, precision), model.preprocessing, precision)
        found = {tower: _run_module(modules[tower], samples[tower], device) for tower in TOWERS}
        if all(compare(found[tower], wanted[tower]).equal for tower in TOWERS):
            return precision, modules
    return "float32", tower_modules(loaded.to(device), model.preprocessing)


def _fast_precision(device: str) -> str | None:
    """As `open_clip.create_model` names it: bf16 on CUDA from Ampere on, fp16 before and on MPS; None on a CPU."""
    import torch

    if device_kind(device) == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "fp16" if device_kind(device) == "mps" else None


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
    """A loaded CLIP model. `limits` says which images are refused."""

    def __init__(
        self,
        model: ClipModel,
        towers: Towers,
        spec: EncoderSpec,
        choice: EngineChoice,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.spec = spec
        self.choice = choice
        self.limits = limits
        self._model = model
        self._towers = towers
        self._images = TokenBudget(towers.images)
        self._tokens = TokenBudget(towers.tokens)
        self._decoders = ThreadPoolExecutor(physical_cores(), thread_name_prefix="vectorize-decode")
        self._runners = ThreadPoolExecutor(towers.workers, thread_name_prefix="vectorize-clip")
        self._tokenizer: TextTokenizer | None = None

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        """As `Encoder.encode`; raises the error of the first image that cannot be decoded, naming the item."""
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
            for future in _ahead(self._runners, run, batches, self._towers.workers + 1):
                positions, found = future.result()
                vectors[positions] = found
        return vectors, failures

    @property
    def memory_bytes(self) -> int:
        return self._towers.memory_bytes

    def close(self) -> None:
        self._decoders.shutdown()
        self._runners.shutdown()
        self._towers.close()

    def _text_tokenizer(self) -> TextTokenizer:
        if self._tokenizer is None:
            self._tokenizer = clip_tokenizer(self._model)
        return self._tokenizer

    def _text_batches(self, texts: Mapping[int, str]) -> Iterator[_Batch]:
        """Token ids, and where their texts stand among the items."""
        if not texts:
            return
        positions, tokenize = list(texts), self._text_tokenizer().ids
        for batch in token_batches(list(texts.values()), tokenize, self._tokens, streams=self._towers.workers):
            yield [positions[each] for each in batch.positions], padded(batch, self._length(batch))

    def _length(self, batch: TokenBatch) -> int:
        return max(len(ids) for ids in batch.ids) if self._towers.short_texts else self._model.context_length

    def _image_batches(self, images: Mapping[int, Path | bytes], failures: dict[int, ItemError]) -> Iterator[_Batch]:
        """Pixels, and where their images stand among the items. What cannot be decoded is put into `failures`."""
        import numpy as np

        share = -(-len(images) // self._towers.workers)  # few images are spread over the streams
        depth = min(self._images.tokens, share) * (self._towers.workers + 1)
        taken: list[int] = []
        pixels: list[Pixels] = []
        for position, future in zip(images, _ahead(self._decoders, self._pixels, images.values(), depth), strict=True):
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

    def _pixels(self, image: Path | bytes) -> Pixels:
        preprocessing = self._model.preprocessing
        return preprocessing.pixels(decode(image, preprocessing.shortest_side, self.limits))

    def _run(self, tower: str, budget: TokenBudget, batch: _Batch) -> tuple[list[int], Vectors]:
        positions, values = batch
        return positions, self._halving(tower, budget, values)

    def _halving(self, tower: str, budget: TokenBudget, values: "npt.NDArray[np.generic]") -> Vectors:
        """The batch's vectors; a batch that runs out of memory is split until its parts fit."""
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
    executor: Executor, function: Callable[[_Argument], _Result], arguments: Iterable[_Argument], depth: int
) -> Iterator[Future[_Result]]:
    """The futures of `function` for each argument, in order, `depth` of them submitted before they are asked for."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for argument in arguments:
            waiting.append(executor.submit(function, argument))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
