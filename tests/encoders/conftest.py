"""Models that the encoder tests share; each is built once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.encoders.tiny_models import LAYOUTS, add_modules, build_encoder
from vectorize_pipelines.encoders import encoder_cache, load_encoder

#: Nothing here may ask the network: an unknown model fails at once instead of after a time-out.
os.environ["HF_HUB_OFFLINE"] = "1"

MEAN = {"pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module", autouse=True)
def _no_model_from_elsewhere() -> None:
    """What the process's tests of other folders have loaded would count as loaded here."""
    encoder_cache().clear()


@pytest.fixture(scope="session")
def cache_directory(exported_models: Path) -> Path:
    """One cache for all tests, as one user has one."""
    return exported_models


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


@pytest.fixture(params=LAYOUTS, ids=lambda layout: f"{layout[0]}-{'modules' if layout[1] else 'plain'}")
def tiny_model(
    request: pytest.FixtureRequest, plain_model: Callable[[str], Path], sentence_model: Callable[..., Path]
) -> Path:
    """A model of each layout."""
    architecture, modules = request.param
    return sentence_model(architecture) if modules else plain_model(architecture)


@pytest.fixture(scope="session")
def _bert_made_ready(plain_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made-ready")
    for engine in ("openvino", "torch"):
        load_encoder(str(plain_model("bert")), "cpu", engine, cache_directory=directory).close()
    return directory


@pytest.fixture
def exported_bert(_bert_made_ready: Path, tmp_path: Path) -> Path:
    """A cache directory of the test's own: OpenVINO and torch have measured the plain BERT there, and nothing else."""
    return Path(shutil.copytree(_bert_made_ready, tmp_path / "exported-bert"))


@pytest.fixture
def unmeasured_bert(exported_bert: Path) -> Path:
    """The same without what was measured: the export and the reference are there, as on a machine with another CPU."""
    for file in exported_bert.glob("*/*/measurement.json"):
        file.unlink()
    return exported_bert
