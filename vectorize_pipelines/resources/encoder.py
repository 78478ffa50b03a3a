"""The GPU resource: gives assets the encoder of a model, loaded once a process."""

from contextlib import AbstractContextManager

import dagster as dg

from vectorize_pipelines import home
from vectorize_pipelines.encoders import lease_encoder
from vectorize_pipelines.encoders.protocol import Encoder
from vectorize_pipelines.settings import load_settings


class EncoderResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Lends encoders. Empty fields take what the settings say (`encoder.device`, `encoder.engine`)."""

    device: str = ""
    engine: str = ""

    def lease(self, model: str) -> AbstractContextManager[Encoder]:
        """The encoder of a model, loaded unless this process has it already; not closed while it is lent.

        Raises `UnknownModelError` or `SettingsError`.
        """
        settings = load_settings()
        return lease_encoder(
            model,
            device=self.device or settings.encoder.device,
            engine=self.engine or settings.encoder.engine,
            cache_directory=home.model_cache(settings),
        )
