"""The table of engines, and the choice among them.

An engine is one module with one class derived from `Engine`, and one line in `ENGINES`; nothing else knows it.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from vectorize_pipelines.encoders.devices import DEVICES, device_kind
from vectorize_pipelines.encoders.layout import ModelLayout, read_layout
from vectorize_pipelines.encoders.models import LocatedModel, locate_model, spec_of
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec
from vectorize_pipelines.errors import SettingsError, VectorizeError

#: name -> module:class, in the order in which `auto` tries them.
ENGINES = {
    "open_clip": "vectorize_pipelines.encoders.open_clip:OpenClipEngine",
    "openvino": "vectorize_pipelines.encoders.openvino:OpenVinoEngine",
    "torch": "vectorize_pipelines.encoders.torch:TorchEngine",
    "sentence-transformers": "vectorize_pipelines.encoders.sentence_transformers:SentenceTransformersEngine",
}


class EngineRefusedError(VectorizeError):
    """An engine cannot reproduce a model; the message says why. `auto` goes on to the next engine."""


@dataclass(frozen=True)
class LoadRequest:
    """What is to be loaded. The model is looked for, and its configuration read, when an engine first asks.

    device        resolved: never `auto`
    precision     auto, or the one to compute in where the engine finds it equal
    token_budget  tokens that one batch may have, padding included; None: the engine's own
    """

    name: str
    device: str
    cache_directory: Path
    precision: str = "auto"
    token_budget: int | None = None

    @cached_property
    def located(self) -> LocatedModel:
        return locate_model(self.name)

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
    #: Whether `auto` may choose it.
    automatic: ClassVar[bool] = True

    def recognises(self, model: str) -> bool:
        """Whether a model of this name is this engine's business; decided by the name alone."""
        return True

    def describe(self, request: LoadRequest) -> EncoderSpec:
        """The model's spec, without loading weights."""
        return request.spec

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


def load_with_first(request: LoadRequest, engine: str) -> Encoder:
    """Loads the model with the first engine that reproduces it.

    Raises `SettingsError` where the engine that was asked for cannot run this model, or none can on this device.
    """
    refused: dict[str, str] = {}
    for each in candidates(request.name, engine):
        why_not = _wrong_device(each, request.device) or each.refusal(request)
        if why_not is None:
            try:
                return each.load(request, _reason(each, engine, refused))
            except EngineRefusedError as error:
                why_not = str(error)
        refused[each.name] = why_not
    reasons = "; ".join(f"{name}: {why_not}" for name, why_not in refused.items())
    remedy = "" if engine == "auto" else ". Engine auto takes what fits"
    raise SettingsError(f"{request.name} cannot be run on {request.device}. {reasons}{remedy}")


def _wrong_device(engine: Engine, device: str) -> str | None:
    if device_kind(device) in engine.devices:
        return None
    return f"runs on {', '.join(sorted(engine.devices))} only, not on {device} (devices: {', '.join(DEVICES)})"


def _reason(engine: Engine, asked_for: str, refused: dict[str, str]) -> str:
    """A sentence for people: why this engine."""
    if asked_for != "auto":
        return f"{engine.name} was asked for."
    if not refused:
        return f"{engine.name} is the fastest engine for this model and device."
    why_not = "; ".join(f"{name} was passed over: {reason}" for name, reason in refused.items())
    return f"{engine.name} is the fastest engine that reproduces this model here ({why_not})."
