"""The errors of choosing and loading an encoder that only the package itself deals with."""

from vectorize_pipelines.errors import VectorizeError


class EngineRefusedError(VectorizeError):
    """An engine cannot reproduce a model; the message says why. `auto` goes on to the next engine."""
