"""The settings: `load_settings()` makes the one typed object, `Settings`; each section of it has a class here."""

from vectorize_pipelines.settings.assessments import AssessmentRule, AssessmentSettings
from vectorize_pipelines.settings.base import COLLECTION_CHARACTERS, COLLECTION_NAME, COLLECTION_RULE, PROJECT_ROOT
from vectorize_pipelines.settings.content import (
    CorpusSettings,
    DocumentSettings,
    GallerySettings,
    UriSettings,
)
from vectorize_pipelines.settings.gateway import GatewaySettings
from vectorize_pipelines.settings.kafka import DrainSettings, KafkaSettings
from vectorize_pipelines.settings.loading import (
    DOTENV_FILE,
    LEGACY_NAMES,
    LEGACY_WITHOUT_EFFECT,
    PREFIX,
    Settings,
    load_settings,
    setting_paths,
    variable_name,
)
from vectorize_pipelines.settings.models import DEFAULT_TEXT_MODEL, EncoderSettings
from vectorize_pipelines.settings.providers import DEFAULT_PROVIDER, Price, ProvidersSettings
from vectorize_pipelines.settings.running import CallbackSettings, PipelineSettings
from vectorize_pipelines.settings.stores import (
    LanceDBSettings,
    QdrantSettings,
    StoreSettings,
    WeaviateSettings,
)

__all__ = [
    "COLLECTION_CHARACTERS",
    "COLLECTION_NAME",
    "COLLECTION_RULE",
    "DEFAULT_PROVIDER",
    "DEFAULT_TEXT_MODEL",
    "DOTENV_FILE",
    "LEGACY_NAMES",
    "LEGACY_WITHOUT_EFFECT",
    "PREFIX",
    "PROJECT_ROOT",
    "AssessmentRule",
    "AssessmentSettings",
    "CallbackSettings",
    "CorpusSettings",
    "DocumentSettings",
    "DrainSettings",
    "EncoderSettings",
    "GallerySettings",
    "GatewaySettings",
    "KafkaSettings",
    "LanceDBSettings",
    "PipelineSettings",
    "Price",
    "ProvidersSettings",
    "QdrantSettings",
    "Settings",
    "StoreSettings",
    "UriSettings",
    "WeaviateSettings",
    "load_settings",
    "setting_paths",
    "variable_name",
]
