"""Engine `sentence-transformers`: runs every model that the library loads. `auto` falls back to it.

Chosen by `load_encoder`.
"""

from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.engines.base import Engine, LoadRequest
from vectorize_pipelines.encoders.engines.sentence_transformers_encoder import NAME, SentenceTransformersEncoder


class SentenceTransformersEngine(Engine):
    """The engine that runs a model with sentence-transformers itself, in float32."""

    name = NAME
    devices = frozenset({"cpu", "cuda", "mps"})
    precisions = frozenset({"float32"})
    extra = "sentence-transformers"

    def refusal(self, request: LoadRequest) -> str | None:
        del request  # whatever the library loads, it runs
        return None

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        return SentenceTransformersEncoder(request, reason)
