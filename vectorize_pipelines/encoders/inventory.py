"""The models that are known on this machine, and what is known of each. Called by `vectorize models`.

Nothing is fetched, loaded or exported to find out.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders import describe_model, find_measured, find_model, forecast_load
from vectorize_pipelines.encoders.configured import describe_options, load_options
from vectorize_pipelines.encoders.engines.base import named
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder, known_folders
from vectorize_pipelines.encoders.models.locate import BUNDLED, LocatedModel, cached_models, locate_model
from vectorize_pipelines.encoders.models.names import REMOTE_PREFIX
from vectorize_pipelines.encoders.models.open_clip import cached_clip_models
from vectorize_pipelines.errors import ModelNotFetchedError, VectorizeError
from vectorize_pipelines.providers.models import parse_model
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of one model; None where something is not known or not there.

    model         its name
    configured    the settings that name it: `models.text`, `models.image`
    origin        `bundled`, `directory`, `cache`; `remote` for a model of a provider; `hub` where it would have to be
                  fetched, `export` where only an export or a measurement of it is there, `unknown` where it cannot be
                  found
    location      its folder, the file of its weights, or the provider's address; None there: OpenAI's own
    size          bytes that this takes
    engine        what would run it, and where: on the device of the settings for a configured model, else on the CPU
    precision     that would be used, measured equal to float32
    reason        why this engine and precision, or what is wrong
    memory        bytes that loading it would take, estimated
    export        folder of its export
    export_size   bytes that this takes
    measured      for each chip and version of what computes on it, part and precision: how near it came to the model's
                  own vectors
    """

    model: str
    configured: tuple[str, ...] = ()
    origin: str = "unknown"
    location: str | None = None
    size: int | None = None
    dimension: int | None = None
    engine: str | None = None
    device: str | None = None
    precision: str | None = None
    reason: str = ""
    memory: int | None = None
    export: str | None = None
    export_size: int | None = None
    measured: tuple[dict[str, Any], ...] = ()


def known_models(settings: Settings) -> list[KnownModel]:
    """The models of the settings, the bundled ones, those in the hub's caches, and those of which something is kept."""
    found: dict[str, KnownModel] = {}
    shown: dict[str, set[Path]] = {}
    for role, model in (("models.text", settings.models.text), ("models.image", settings.models.image)):
        known, folders = _described(settings, model)
        roles = (*found[known.model].configured, role) if known.model in found else (role,)
        found[known.model] = replace(known, configured=roles)
        shown[known.model] = {folder.directory for folder in folders}
    for located in _on_disk():
        size = _size(located.directory)
        row = KnownModel(located.name, origin=located.origin, location=str(located.directory), size=size)
        found.setdefault(located.name, row)
    revisions: dict[str, Any] = {}
    for folder in known_folders(home.model_cache(settings)):
        model, revision = (
            str(folder.description.get("model", folder.directory.name)),
            folder.description.get("revision"),
        )
        if folder.directory in shown.get(model, ()):
            continue
        first = model in found and model not in shown and revisions.setdefault(model, revision) == revision
        if first and not (folder.exported and found[model].export):
            found[model] = _with_folder(found[model], folder)
        else:
            reason = "of another revision, or by another version: may be deleted" if model in found else ""
            row = KnownModel(model, origin="export", reason=reason)
            if not folder.exported:
                row = replace(row, location=str(folder.directory), size=folder.size)
            found[str(folder.directory)] = _with_folder(row, folder)
    return list(found.values())


def describe_known(settings: Settings, model: str) -> KnownModel:
    """What is known of one model, run as the settings say."""
    return _described(settings, model)[0]


def _described(settings: Settings, model: str) -> tuple[KnownModel, list[MeasuredFolder]]:
    """What is known of one model, and the folders that this is known from."""
    options, describing = load_options(settings), describe_options(settings)
    device, engine = settings.encoder.device, settings.encoder.engine
    if model.startswith(REMOTE_PREFIX):
        return _remote(settings, model), []
    try:
        located = find_model(model, **describing)
        spec = describe_model(model, fetch=False, **describing)
        known = KnownModel(
            spec.name,
            origin=located.origin,
            location=str(located.directory),
            size=_size(located.directory),
            dimension=spec.dimension,
        )
    except ModelNotFetchedError as error:
        return KnownModel(model, origin="hub", reason=str(error)), []
    except VectorizeError as error:
        return KnownModel(model, reason=str(error)), []
    try:
        choice, memory = forecast_load(model, device, engine, **options)
        on_device = find_measured(model, device, **options)
    except VectorizeError as error:
        known, on_device = replace(known, reason=str(error)), []
    else:
        known = replace(
            known,
            engine=choice.engine,
            device=choice.device,
            precision=choice.precision or None,
            reason=choice.reason,
            memory=memory,
        )
    folders = {
        (folder.directory, folder.machine): folder for folder in (*on_device, *find_measured(model, "cpu", **options))
    }
    complete = [folder for folder in folders.values() if folder.complete]
    for folder in complete:
        known = _with_measured(known, folder)
    return known, complete


def _remote(settings: Settings, model: str) -> KnownModel:
    """What is known of a model that nothing on this machine is of."""
    asked = parse_model(model.removeprefix(REMOTE_PREFIX), settings.providers)
    url = settings.providers.base_url_of(asked.provider)
    known = KnownModel(model, origin="remote", location=url, engine="remote")
    try:
        spec = describe_model(model, fetch=False, **describe_options(settings))
        choice, _ = forecast_load(model, settings.encoder.device, settings.encoder.engine, **load_options(settings))
    except VectorizeError as error:
        return replace(known, reason=str(error))
    return replace(known, model=spec.name, dimension=spec.dimension, device=choice.device, reason=choice.reason)


def _on_disk() -> Iterator[LocatedModel]:
    for name in BUNDLED:
        with contextlib.suppress(ModelNotFetchedError):  # its package is not installed
            yield locate_model(name, fetch=False)
    clips = cached_clip_models()
    folders = {folder for _, folder in clips}
    yield from (LocatedModel(name, folder, "cache") for name, folder in clips)
    yield from (located for located in cached_models() if located.directory not in folders)


def _with_folder(known: KnownModel, folder: MeasuredFolder) -> KnownModel:
    """A model that was not described, with what a folder says of it."""
    description, chosen = folder.description, folder.precisions("auto")
    known = replace(
        known,
        engine=known.engine or description.get("engine"),
        device=known.device or "cpu",
        precision=known.precision or (named(chosen) if chosen else None),
        reason=known.reason or str(description.get("refusal", "")),
    )
    return _with_measured(known, folder)


def _with_measured(known: KnownModel, folder: MeasuredFolder) -> KnownModel:
    measured = tuple(
        {"machine": folder.machine, "part": part, "precision": precision, **asdict(agreement), "equal": agreement.equal}
        for part, by_precision in folder.measured.items()
        for precision, agreement in by_precision.items()
    )
    known = replace(known, measured=(*known.measured, *measured))
    return replace(known, export=str(folder.directory), export_size=folder.size) if folder.exported else known


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
