"""The multimodal model that judges pictures, as a resource."""

from functools import partial

import dagster as dg

from vectorize_pipelines.pipeline.assessments.calls import OpenModel
from vectorize_pipelines.providers.configured import configured_chat_model
from vectorize_pipelines.settings import load_settings


class LanguageModelResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Lends the model that `providers.model` names, or `model` where that is not empty."""

    model: str = ""

    def opener(self) -> OpenModel:
        """Return what opens the model in an event loop, and closes it; raises as `configured_chat_model`."""
        return partial(configured_chat_model, load_settings(), self.model or None)
