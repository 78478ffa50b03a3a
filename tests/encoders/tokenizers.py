"""The tokenizers of models that lie on this machine, with what only those have."""

from typing import Unpack

from vectorize_pipelines.encoders import LoadOptions, load_tokenizer
from vectorize_pipelines.encoders.models.tokenizer import ModelTokenizer


def local_tokenizer(model: str, **options: Unpack[LoadOptions]) -> ModelTokenizer:
    """The tokenizer of a model that is no remote one."""
    found = load_tokenizer(model, **options)
    assert isinstance(found, ModelTokenizer)
    return found
