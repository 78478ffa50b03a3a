"""Settings of the models, and of how they run."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from vectorize_pipelines.settings.base import AbsolutePath, Section

DEFAULT_TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_IMAGE_MODEL = "ViT-B/32"


class ModelsSettings(Section):
    """Models by modality: a name of the hub, a local directory, or the bundled default."""

    text: str = Field(DEFAULT_TEXT_MODEL, description="for texts and documents")
    image: str = Field(DEFAULT_IMAGE_MODEL, description="for images and the texts that are searched among them")
    dimension: int | None = Field(
        None, ge=1, description="text vectors are cut to so many dimensions (Matryoshka models); null: all"
    )
    allow_pickled_weights: bool = Field(
        False,
        description="weights are also read from pickles (.bin, .pt, .pth), which can run code; else safetensors only",
    )


def _device_name(device: str) -> str:
    name = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"there is no device {device!r}; choose one of auto, cpu, cuda, cuda:N, mps")
    return name


class EncoderSettings(Section):
    """How models run."""

    engine: Annotated[
        Literal["auto", "open_clip", "openvino", "torch", "sentence-transformers", "remote"],
        BeforeValidator(lambda name: "remote" if name == "api" else name),
    ] = Field(
        "auto",
        description="auto: the first that reproduces the model on the device; remote (or api): only models of "
        "providers, which any engine leaves to it",
    )
    device: Annotated[str, AfterValidator(_device_name)] = Field(
        "auto", description="auto, cpu, cuda, cuda:N, mps; cuda and auto go round several GPUs"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the fastest that was measured equal to float32; another is refused where it is not"
    )
    token_budget: int | None = Field(
        None, ge=1, description="tokens that one batch may have, padding included; null: what the engine found best"
    )
    token_budget_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the token budget that a batch takes; in Kubernetes a run gets half of it that repeats one "
        "which was killed for its memory",
    )
    max_loaded: int = Field(3, ge=1, description="models that a process keeps loaded")
    memory_bytes: int | None = Field(
        None, ge=1, description="what loaded models may take on a device together; null: what the device has"
    )
    cache_directory: AbsolutePath | None = Field(
        None, description="exports and what was measured of models; null: encoders/ in the home"
    )
