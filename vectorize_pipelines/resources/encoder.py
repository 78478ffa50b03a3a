"""The GPU resource: gives assets the encoder of a model, loaded once a process."""

import dagster as dg

from vectorize_pipelines import home
from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec
from vectorize_pipelines.settings import load_settings


class EncoderResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Loads encoders. Empty fields take what the settings say (`encoder.device`, `encoder.engine`)."""

    device: str = ""
    engine: str = ""

    def load(self, spec: EncoderSpec) -> Encoder:
        """The encoder of a model. Raises `UnknownModelError` or `SettingsError`."""
        settings = load_settings()
        return load_encoder(
            spec.name,
            device=self.device or settings.encoder.device,
            engine=self.engine or settings.encoder.engine,
            cache_directory=home.model_cache(settings),
        )
