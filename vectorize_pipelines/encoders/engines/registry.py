"""The table of engines, and the choice among them.

An engine is a module or folder with one class derived from `base.Engine`, and one line in `ENGINES`. Beyond that only
its name is known: to the setting `encoder.engine`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping

from vectorize_pipelines.encoders.base import Encoder, EngineChoice
from vectorize_pipelines.encoders.engines.base import Engine, LoadRequest, named
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.hardware.devices import DEVICES, device_kind
from vectorize_pipelines.encoders.models.names import REMOTE_PREFIX
from vectorize_pipelines.errors import SettingsError

#: name -> module:class, in the order in which `auto` tries them.
ENGINES = {
    "open_clip": "vectorize_pipelines.encoders.engines.open_clip.engine:OpenClipEngine",
    "openvino": "vectorize_pipelines.encoders.engines.openvino.engine:OpenVinoEngine",
    "torch": "vectorize_pipelines.encoders.engines.torch.engine:TorchEngine",
    "sentence-transformers": "vectorize_pipelines.encoders.engines.sentence_transformers:SentenceTransformersEngine",
    "remote": "vectorize_pipelines.encoders.engines.remote.engine:RemoteEngine",
}
#: Other names of engines.
ALIASES = {"api": "remote"}


def engine_names() -> tuple[str, ...]:
    """Every name that the setting `encoder.engine` takes."""
    return ("auto", *ENGINES)


def load_engine(name: str) -> Engine:
    """The engine called `name`; raises `SettingsError` naming the choices."""
    name = ALIASES.get(name, name)
    if name not in ENGINES:
        raise SettingsError(f"unknown engine {name!r}; choose one of {', '.join(engine_names())}")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine


def candidates(model: str, engine: str) -> Iterator[Engine]:
    """The engines to try for `model`, best first. One that is not here is the provider's, whatever engine is set."""
    if model.startswith(REMOTE_PREFIX):
        yield load_engine("remote")
        return
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
    """Return what `load_with_first` would choose, as far as that is known without loading, and the bytes it would take.

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


def _measured(engine: Engine, request: LoadRequest, folder: MeasuredFolder | None) -> tuple[str, str]:
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


def _none_left(request: LoadRequest, engine: str, refused: Mapping[str, str]) -> SettingsError:
    reasons = "; ".join(f"{name}: {why_not}" for name, why_not in refused.items())
    precision = "" if request.precision == "auto" else f" in {request.precision}"
    remedies = [
        f"{name} auto" for name, given in (("engine", engine), ("precision", request.precision)) if given != "auto"
    ]
    remedy = f". {' and '.join(remedies).capitalize()} takes what fits" if remedies else ""
    return SettingsError(f"{request.name} cannot be run on {request.device}{precision}. {reasons}{remedy}")


def _refusal(engine: Engine, request: LoadRequest) -> str | None:
    """Return why the engine cannot do what is asked, as far as that shows without loading."""
    if engine.lacking is not None:
        return engine.lacking
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
