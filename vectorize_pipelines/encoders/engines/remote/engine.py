"""Engine `remote`: models of providers that speak OpenAI's protocol, by names such as `remote:PROVIDER/MODEL`.

A model's dimension is asked for once and remembered. Nothing else of it can be known: its name is its revision.
"""

import hashlib
import json
from contextlib import closing
from pathlib import Path

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, EngineChoice
from vectorize_pipelines.encoders.engines.base import Engine, LoadRequest
from vectorize_pipelines.encoders.engines.remote.connection import RemoteConnection
from vectorize_pipelines.encoders.engines.remote.encoder import RemoteEncoder
from vectorize_pipelines.encoders.engines.remote.tokenizer import EstimatedTokenizer
from vectorize_pipelines.encoders.models.files import read_json, remember
from vectorize_pipelines.encoders.models.locate import LocatedModel
from vectorize_pipelines.encoders.models.names import REMOTE_PREFIX, canonical
from vectorize_pipelines.errors import ModelNotFetchedError, SettingsError, UnknownModelError
from vectorize_pipelines.providers.models import RemoteModel, parse_model
from vectorize_pipelines.settings import Settings, load_settings


class RemoteEngine(Engine):
    """Asks providers, whatever the device."""

    name = "remote"
    devices = frozenset({"cpu", "cuda", "mps"})
    precisions = frozenset({"float32"})
    exclusive = True
    extra = "providers"

    def recognises(self, model: str) -> bool:
        """Return whether a name begins with `remote:`."""
        return model.startswith(REMOTE_PREFIX)

    def describe(self, request: LoadRequest) -> EncoderSpec:
        """As in `Engine`. Asks the provider where the model's dimension is not known, unless `fetch` is false."""
        settings = _settings(request)
        return _spec(request, settings, _dimension(request, settings))

    def locate(self, request: LoadRequest) -> LocatedModel:
        """As in `Engine`: there is nothing on this machine."""
        raise UnknownModelError(f"{request.name} is a remote model: nothing of it lies on this machine")

    def tokenizer(self, request: LoadRequest) -> EstimatedTokenizer:
        """As in `Engine`: tokens are estimated."""
        _model(request, _settings(request))
        return EstimatedTokenizer()

    def weight_files(self, request: LoadRequest) -> list[Path]:
        """As in `Engine`: there are none."""
        return []

    def memory_needed(self, request: LoadRequest) -> int:
        """As in `Engine`: next to nothing."""
        return 0

    def access(self, request: LoadRequest) -> str:
        """As in `Engine`: providers, keys and their state, without anything secret."""
        settings = _settings(request)
        redis = None if settings.redis.url is None else settings.redis.url.get_secret_value()
        asked = f"{settings.home} {redis} {settings.providers.model_dump_json()}"
        return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()

    def refusal(self, request: LoadRequest) -> str | None:
        """As in `Engine`."""
        return None if self.recognises(request.name) else _other_model(request.name)

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        """As in `Engine`. Raises `SettingsError`, `LedgerError` and `KeysError`."""
        settings = _settings(request)
        spec, model = self.describe(request), _model(request, settings)
        choice = EngineChoice(self.name, request.device, "float32", f"{reason} The provider {model.provider} runs it.")
        connection = RemoteConnection(settings, model)
        return RemoteEncoder(spec, choice, connection, request.image_limits, settings.providers.image_tokens)


def _settings(request: LoadRequest) -> Settings:
    return request.settings or load_settings()


def _model(request: LoadRequest, settings: Settings) -> RemoteModel:
    """Return the model that a request names. Raises `SettingsError` where it names none of a provider."""
    name = request.name.removeprefix(REMOTE_PREFIX)
    if not request.name.startswith(REMOTE_PREFIX) or not name.strip("/ "):
        raise SettingsError(f"the engine remote {_other_model(request.name)}")
    return parse_model(name, settings.providers)


def _other_model(name: str) -> str:
    return f"runs models called remote:MODEL or remote:PROVIDER/MODEL only, not {name}"


def _spec(request: LoadRequest, settings: Settings, dimension: int) -> EncoderSpec:
    name = canonical(request.name)
    takes_images = _model(request, settings).model in settings.providers.image_embedding_models
    return EncoderSpec(
        name=name,
        revision=hashlib.blake2b(name.encode(), digest_size=6).hexdigest(),
        dimension=dimension,
        max_length=None,
        pooling="remote",
        prompt="",
        query_prompt="",
        modalities=frozenset({Modality.TEXT, Modality.IMAGE} if takes_images else {Modality.TEXT}),
        normalized=True,
    )


def _dimension(request: LoadRequest, settings: Settings) -> int:
    """Return the length of a model's vectors. Raises `ModelNotFetchedError` where it would have to be asked for."""
    model = _model(request, settings)
    wanted = settings.providers.embedding_dimensions.get(model.model)
    asked = f"{settings.providers.base_url_of(model.provider)} {model.full_name} {wanted}"
    key = hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()
    file = request.cache_directory / "remote" / f"{key}.json"
    known = read_json(file).get("dimension")
    if isinstance(known, int) and known > 0:
        return known
    if not request.fetch:
        raise ModelNotFetchedError(
            f"{request.name} was not asked for its dimension yet; `vectorize models prefetch {request.name}` asks, as "
            "its first use does"
        )
    with closing(RemoteConnection(settings, model)) as connection:
        dimension = len(connection.probe())
    if wanted not in (None, dimension):
        raise SettingsError(
            f"providers.embedding_dimensions wants {wanted} dimensions of {model.full_name}, which gives {dimension}"
        )
    remember(file, json.dumps({"model": model.full_name, "dimension": dimension}))
    return dimension
