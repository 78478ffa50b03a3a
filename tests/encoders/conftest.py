"""Models that the encoder tests share; each is built once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.encoders.tiny_models import ARCHITECTURES, add_modules, build_encoder
from vectorize_pipelines.encoders import encoder_cache

#: Nothing here may ask the network: an unknown model fails at once instead of after a time-out.
os.environ["HF_HUB_OFFLINE"] = "1"

MEAN = {"pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module", autouse=True)
def _no_model_from_elsewhere() -> None:
    """What the process's tests of other folders have loaded would count as loaded here."""
    encoder_cache().clear()


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests, as one user has one."""
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By architecture: the folder of a plain Hugging Face encoder."""
    root = tmp_path_factory.mktemp("plain")

    def build(architecture: str) -> Path:
        directory = root / architecture
        return directory if directory.is_dir() else build_encoder(directory, architecture)

    return build


@pytest.fixture(scope="session")
def sentence_model(plain_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """By architecture and module settings: the folder of a sentence-transformers model with the same weights."""
    root = tmp_path_factory.mktemp("sentence")

    def build(architecture: str, name: str = "mean", **settings: Any) -> Path:
        directory = root / f"{architecture}-{name}"
        if directory.is_dir():
            return directory
        shutil.copytree(plain_model(architecture), directory)
        return add_modules(directory, **{"pooling": MEAN, **settings})

    return build


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)
