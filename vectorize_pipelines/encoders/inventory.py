"""The models that are known on this machine, and what is known of each. Called by `vectorize models`.

Nothing is fetched, loaded or exported to find out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vectorize_pipelines import home
from vectorize_pipelines.encoders import describe_model, find_export, find_model, forecast_load
from vectorize_pipelines.encoders.configured import load_options
from vectorize_pipelines.encoders.engines import named
from vectorize_pipelines.encoders.export_folder import ExportFolder, known_exports
from vectorize_pipelines.encoders.models import BUNDLED, LocatedModel, cached_models, locate_model
from vectorize_pipelines.encoders.open_clip_models import cached_clip_models
from vectorize_pipelines.errors import ModelNotFetchedError, VectorizeError
from vectorize_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of one model; None where something is not known or not there.

    model         its name
    configured    the settings that name it: `models.text`, `models.image`
    origin        `bundled`, `directory`, `cache`; `hub` where it would have to be fetched, `export` where only an
                  export of it is there, `unknown` where it cannot be found
    location      its folder, or the file of its weights
    size          bytes that this takes
    engine        what would run it, and where: on the device of the settings for a configured model, else on the CPU
    precision     that would be used, measured equal to float32
    reason        why this engine and precision, or what is wrong
    memory        bytes that loading it would take, estimated
    export        folder of its export
    export_size   bytes that this takes
    measured      for each part and precision of the export: how near it came to the model's own vectors here
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
    """The models of the settings, the bundled ones, those in the hub's caches, and those that were exported."""
    found: dict[str, KnownModel] = {}
    for role, model in (("models.text", settings.models.text), ("models.image", settings.models.image)):
        known = describe_known(settings, model)
        roles = (*found[known.model].configured, role) if known.model in found else (role,)
        found[known.model] = replace(known, configured=roles)
    for located in _on_disk():
        size = _size(located.directory)
        row = KnownModel(located.name, origin=located.origin, location=str(located.directory), size=size)
        found.setdefault(located.name, row)
    for folder in known_exports(home.model_cache(settings)):
        if any(known.export == str(folder.directory) for known in found.values()):
            continue
        model = str(folder.description.get("model", folder.directory.name))
        if model in found and found[model].export is None:
            found[model] = _with_export(found[model], folder)
        else:
            reason = "of another revision, or by another version: may be deleted" if model in found else ""
            found[str(folder.directory)] = _with_export(KnownModel(model, origin="export", reason=reason), folder)
    return list(found.values())


def describe_known(settings: Settings, model: str) -> KnownModel:
    """What is known of one model, run as the settings say."""
    options = load_options(settings)
    device, engine = settings.encoder.device, settings.encoder.engine
    try:
        located = find_model(model, cache_directory=options["cache_directory"])
        spec = describe_model(model, cache_directory=options["cache_directory"], fetch=False)
        known = KnownModel(
            spec.name,
            origin=located.origin,
            location=str(located.directory),
            size=_size(located.directory),
            dimension=spec.dimension,
        )
    except ModelNotFetchedError as error:
        return KnownModel(model, origin="hub", reason=str(error))
    except VectorizeError as error:
        return KnownModel(model, reason=str(error))
    try:
        choice, memory = forecast_load(model, device, engine, **options)
    except VectorizeError as error:
        return replace(known, reason=str(error))
    known = replace(
        known,
        engine=choice.engine,
        device=choice.device,
        precision=choice.precision or None,
        reason=choice.reason,
        memory=memory,
    )
    folder = find_export(model, **options)
    return known if folder is None or not folder.complete else _with_export(known, folder)


def _on_disk() -> Iterator[LocatedModel]:
    yield from (locate_model(name, fetch=False) for name in BUNDLED)
    clips = cached_clip_models()
    folders = {folder for _, folder in clips}
    yield from (LocatedModel(name, folder, "cache") for name, folder in clips)
    yield from (located for located in cached_models() if located.directory not in folders)


def _with_export(known: KnownModel, folder: ExportFolder) -> KnownModel:
    description, chosen = folder.description, folder.precisions("auto")
    return replace(
        known,
        engine=known.engine or description.get("engine"),
        device=known.device or "cpu",
        precision=known.precision or (named(chosen) if chosen else None),
        reason=known.reason or str(description.get("refusal", "")),
        export=str(folder.directory),
        export_size=folder.size,
        measured=tuple(
            {"part": part, "precision": precision, **asdict(agreement), "equal": agreement.equal}
            for part, by_precision in folder.measured.items()
            for precision, agreement in by_precision.items()
        ),
    )


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
