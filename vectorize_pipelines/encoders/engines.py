"""The table of engines, and the choice among them.

An engine is one module with one class derived from `Engine`, and one line in `ENGINES`; nothing else knows it.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vectorize_pipelines.encoders.devices import DEVICES, device_kind
from vectorize_pipelines.encoders.layout import ModelLayout, read_layout
from vectorize_pipelines.encoders.models import LocatedModel, locate_model, spec_of
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec, EngineChoice
from vectorize_pipelines.encoders.revisions import weight_files
from vectorize_pipelines.encoders.tokenizer import ModelTokenizer, model_tokenizer
from vectorize_pipelines.encoders.weights import count_parameters
from vectorize_pipelines.errors import SettingsError, VectorizeError
from vectorize_pipelines.images.decoding import DEFAULT_LIMITS, ImageLimits

if TYPE_CHECKING:
    from vectorize_pipelines.encoders.measured_folder import MeasuredFolder

#: name -> module:class, in the order in which `auto` tries them.
ENGINES = {
    "open_clip": "vectorize_pipelines.encoders.open_clip:OpenClipEngine",
    "openvino": "vectorize_pipelines.encoders.openvino:OpenVinoEngine",
    "torch": "vectorize_pipelines.encoders.torch:TorchEngine",
    "sentence-transformers": "vectorize_pipelines.encoders.sentence_transformers:SentenceTransformersEngine",
}


#: What the setting `encoder.precision` takes. `auto`: the fastest that was measured equal to float32.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

#: Beside the weights: the libraries and the largest batches. sentence-transformers took 0.5 to 1.4 GB with BERT base.
WORKING_BYTES = 2**30


class EngineRefusedError(VectorizeError):
    """An engine cannot reproduce a model; the message says why. `auto` goes on to the next engine."""


@dataclass(frozen=True)
class LoadRequest:
    """What is to be loaded. The model is looked for, and its configuration read, when an engine first asks.

    device            resolved: never `auto`
    precision         one of `PRECISIONS`
    token_budget      tokens that one batch may have, padding included; None: what the engine found best
    image_limits      which images are refused
    decoding_threads  images that are decoded side by side; None: one a core
    fetch             whether a model that is not on this machine is fetched from the hub
    """

    name: str
    device: str
    cache_directory: Path
    precision: str = "auto"
    token_budget: int | None = None
    image_limits: ImageLimits = DEFAULT_LIMITS
    decoding_threads: int | None = None
    fetch: bool = True

    @cached_property
    def located(self) -> LocatedModel:
        return locate_model(self.name, fetch=self.fetch)

    @cached_property
    def layout(self) -> ModelLayout:
        return read_layout(self.located.directory)

    @cached_property
    def spec(self) -> EncoderSpec:
        return spec_of(self.layout, self.located.name, self.cache_directory)


class Engine(ABC):
    """One way to run models. Stateless; importing its module imports nothing heavy."""

    name: ClassVar[str]
    #: Kinds of device that it runs on.
    devices: ClassVar[frozenset[str]]
    #: Precisions that it can be asked for; whether they are equal for a model on a device, it finds out itself.
    precisions: ClassVar[frozenset[str]] = frozenset(PRECISIONS[1:])
    #: Whether `auto` may choose it.
    automatic: ClassVar[bool] = True
    #: Whether a model that it recognises is no other engine's business.
    exclusive: ClassVar[bool] = False

    def recognises(self, model: str) -> bool:
        """Whether a model of this name is this engine's business; decided by the name alone."""
        return True

    def describe(self, request: LoadRequest) -> EncoderSpec:
        """The model's spec, without loading weights."""
        return request.spec

    def locate(self, request: LoadRequest) -> LocatedModel:
        """Where the model lies: its folder, or the file of its weights."""
        return request.located

    def tokenizer(self, request: LoadRequest) -> ModelTokenizer:
        """What texts are cut by; loads no weights. Raises `UnknownModelError` where the model has none for that."""
        return model_tokenizer(request.layout, cache_directory=request.cache_directory, revision=request.spec.revision)

    def weight_files(self, request: LoadRequest) -> list[Path]:
        """The files that a load reads weights from."""
        return weight_files(request.layout.directory, request.layout.module_directories)

    def memory_needed(self, request: LoadRequest) -> int:
        """Bytes that a load takes on the request's device at its highest, estimated from what lies on disk."""
        width = 2 if request.precision in {"bfloat16", "float16"} else 4
        return count_parameters(self.weight_files(request)) * width + WORKING_BYTES

    def measured_folder(self, request: LoadRequest) -> "MeasuredFolder | None":
        """Where lies what a load makes of the model and measures, made or not; None where a load measures nothing."""
        return None

    @abstractmethod
    def refusal(self, request: LoadRequest) -> str | None:
        """Why the model's configuration shows that this engine cannot run it; None if it may. Loads no weights."""

    @abstractmethod
    def load(self, request: LoadRequest, reason: str) -> Encoder:
        """The loaded model; `reason` goes into its `EngineChoice`.

        Raises `EngineRefusedError` where only trying shows that the model is not reproduced, and
        `UnknownModelError` where the model itself is at fault.
        """


def engine_names() -> tuple[str, ...]:
    """Every name that the setting `encoder.engine` takes."""
    return ("auto", *ENGINES)


def load_engine(name: str) -> Engine:
    """The engine called `name`; raises `SettingsError` naming the choices."""
    if name not in ENGINES:
        raise SettingsError(f"unknown engine {name!r}; choose one of {', '.join(engine_names())}")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine


def candidates(model: str, engine: str) -> Iterator[Engine]:
    """The engines to try for `model`, best first."""
    if engine != "auto":
        yield load_engine(engine)
        return
    for name in ENGINES:
        loaded = load_engine(name)
        if loaded.automatic and loaded.recognises(model):
            yield loaded
            if loaded.exclusive:
                return


def load_with_first(request: LoadRequest, engine: str, make_room: Callable[[int], None]) -> Encoder:
    """Loads the model with the first engine that reproduces it.

    `make_room` is called before weights are loaded, with the bytes that this takes; it raises where they cannot be
    had. Raises `SettingsError` where the engine that was asked for cannot run this model as it was asked to, or none
    can on this device.
    """
    refused: dict[str, str] = {}
    for each in candidates(request.name, engine):
        why_not = _refusal(each, request)
        if why_not is None:
            make_room(each.memory_needed(request))
            try:
                return each.load(request, _reason(each, engine, refused))
            except EngineRefusedError as error:
                why_not = str(error)
        refused[each.name] = why_not
    raise _none_left(request, engine, refused)


def forecast(request: LoadRequest, engine: str) -> tuple[EngineChoice, int]:
    """What `load_with_first` would choose, as far as that is known without loading, and the bytes it would take.

    The precision is empty where it has not been measured on this machine yet. Raises `SettingsError` as a load does.
    """
    refused: dict[str, str] = {}
    for each in candidates(request.name, engine):
        why_not = _refusal(each, request)
        folder = each.measured_folder(request) if why_not is None else None
        if folder is not None:
            why_not = folder.refusal(request.precision)
        if why_not is None:
            precision, account = _measured(each, request, folder)
            reason = f"{_reason(each, engine, refused)} {account}".strip()
            return EngineChoice(each.name, request.device, precision, reason), each.memory_needed(request)
        refused[each.name] = why_not
    raise _none_left(request, engine, refused)


def _measured(engine: Engine, request: LoadRequest, folder: "MeasuredFolder | None") -> tuple[str, str]:
    """The precision that a load would use, where that is known, and a sentence on where it is known from."""
    if folder is None:
        return (next(iter(engine.precisions)), "") if len(engine.precisions) == 1 else ("", "")
    if not folder.complete:
        return "", "Its first use makes it ready and measures it."
    chosen = folder.precisions(request.precision)
    if chosen is None:
        return "", "Its next use measures it on this machine."
    figures = "; ".join(f"{part} in {folder.account(part, precision)}" for part, precision in chosen.items())
    return named(chosen), f"Measured on this machine: {figures}."


def named(precisions: Mapping[str, str]) -> str:
    """`bfloat16`, or `image float32, text bfloat16` where a model's parts differ."""
    if len(set(precisions.values())) == 1:
        return next(iter(precisions.values()))
    return ", ".join(f"{part} {precision}" for part, precision in precisions.items())


def _none_left(request: LoadRequest, engine: str, refused: Mapping[str, str]) -> SettingsError:
    reasons = "; ".join(f"{name}: {why_not}" for name, why_not in refused.items())
    precision = "" if request.precision == "auto" else f" in {request.precision}"
    remedies = [
        f"{name} auto" for name, given in (("engine", engine), ("precision", request.precision)) if given != "auto"
    ]
    remedy = f". {' and '.join(remedies).capitalize()} takes what fits" if remedies else ""
    return SettingsError(f"{request.name} cannot be run on {request.device}{precision}. {reasons}{remedy}")


def _refusal(engine: Engine, request: LoadRequest) -> str | None:
    """Why the engine cannot do what is asked, as far as that shows without loading."""
    if device_kind(request.device) not in engine.devices:
        runs_on = ", ".join(sorted(engine.devices))
        return f"runs on {runs_on} only, not on {request.device} (devices: {', '.join(DEVICES)})"
    if request.precision not in ("auto", *engine.precisions):
        return f"runs in {', '.join(sorted(engine.precisions))} only, not in {request.precision}"
    return engine.refusal(request)


def _reason(engine: Engine, asked_for: str, refused: dict[str, str]) -> str:
    """A sentence for people: why this engine."""
    if asked_for != "auto":
        return f"{engine.name} was asked for."
    if not refused:
        return f"{engine.name} is the fastest engine for this model and device."
    why_not = "; ".join(f"{name} was passed over: {reason}" for name, reason in refused.items())
    return f"{engine.name} is the fastest engine that reproduces this model here ({why_not})."
