"""The GPU resource: gives assets the encoder of a model, loaded once a process."""

from contextlib import AbstractContextManager

import dagster as dg
from pydantic import PrivateAttr

from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.encoders.hardware.devices import cuda_devices, device_of_shard, shard_index
from vectorize_pipelines.runs.tags import SHARD_TAG
from vectorize_pipelines.settings import Settings, load_settings


class EncoderResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Lends encoders. Empty fields take what the settings say (`encoder.device`, `encoder.engine`, …).

    On a machine with several GPUs a run with the tag `vectorize/shard` gets the GPU of its shard, unless the device
    is named in full.
    """

    device: str = ""
    engine: str = ""
    precision: str = ""
    token_budget: int | None = None
    max_loaded: int | None = None
    memory_bytes: int | None = None
    cache_directory: str = ""

    _shard_tag: str | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Called by Dagster at the start of a run."""
        self._shard_tag = context.run.tags.get(SHARD_TAG) if context.run is not None else None

    def lease(self, model: str, dimension: int | None = None) -> AbstractContextManager[Encoder]:
        """The encoder of a model, loaded unless this process has it already; not closed while it is lent.

        `dimension`: that of the vectors which the caller's collection holds; None is the model's own. Raises as
        `load_encoder`, and `SettingsError` where the run's shard cannot be read.
        """
        return lease_configured(self._settings(), model, dimension)

    def _settings(self) -> Settings:
        """The settings in force, with what this resource's fields and the run's shard make of them."""
        given = self.model_dump(include=set(type(self).model_fields))
        settings = load_settings(encoder={name: value for name, value in given.items() if value not in ("", None)})
        device = settings.encoder.device
        if self._shard_tag is not None:
            device = device_of_shard(device, shard_index(self._shard_tag), len(cuda_devices()))
        encoder = settings.encoder.model_copy(update={"device": device})
        return settings.model_copy(update={"encoder": encoder})
