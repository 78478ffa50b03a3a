"""The interface of engines, `Engine`, and the `LoadRequest` that it is given.

Implemented by the engines; `registry` chooses among them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.core.image_limits import DEFAULT_LIMITS, ImageLimits
from vectorize_pipelines.encoders.base import CountingTokenizer, CountTokens, Encoder, EncoderSpec
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.models.layout import ModelLayout, read_layout
from vectorize_pipelines.encoders.models.locate import LocatedModel, locate_model, spec_of
from vectorize_pipelines.encoders.models.revisions import weight_files
from vectorize_pipelines.encoders.models.tokenizer import encodable, model_tokenizer
from vectorize_pipelines.encoders.models.vetting import check_weights
from vectorize_pipelines.encoders.models.weights import count_parameters
from vectorize_pipelines.errors import ItemError

if TYPE_CHECKING:
    from vectorize_pipelines.settings import Settings

#: What the setting `encoder.precision` takes. `auto`: the fastest that was measured equal to float32.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

#: Beside the weights: the libraries and the largest batches. sentence-transformers took 0.5 to 1.4 GB with BERT base.
WORKING_BYTES = 2**30


@dataclass(frozen=True)
class LoadRequest:
    """A model to be loaded, and how. The model is looked for, and its configuration read, when an engine first asks.

    device            resolved: never `auto`
    precision         one of `PRECISIONS`
    token_budget      tokens that one batch may have, padding included; None: what the engine found best
    token_budget_share  part of that budget that a batch takes, above 0 and at most 1
    image_limits      which images are refused, and what decoding one may take
    decoding_threads  images that are decoded side by side, each in a process; None: one a core
    fetch             whether a model that is not on this machine is fetched from the hub
    pickled_weights   whether weights that are not safetensors are read
    settings          for remote models: providers, keys, prices; None: those in force
    """

    name: str
    device: str
    cache_directory: Path
    precision: str = "auto"
    token_budget: int | None = None
    token_budget_share: float = 1.0
    image_limits: ImageLimits = DEFAULT_LIMITS
    decoding_threads: int | None = None
    fetch: bool = True
    pickled_weights: bool = False
    settings: "Settings | None" = None

    def batch_tokens(self, best: int) -> int:
        """Return the tokens that one batch may have, where `best` is what the engine found best."""
        return max(1, int((self.token_budget or best) * self.token_budget_share))

    @cached_property
    def located(self) -> LocatedModel:
        return locate_model(self.name, fetch=self.fetch, pickled_weights=self.pickled_weights)

    @cached_property
    def layout(self) -> ModelLayout:
        return read_layout(self.located.directory)

    @cached_property
    def spec(self) -> EncoderSpec:
        weights = weight_files(self.layout.directory, self.layout.module_directories)
        check_weights(weights, self.name, pickled=self.pickled_weights)
        return spec_of(self.layout, self.located.name, self.cache_directory)


class Engine(ABC):
    """One way to run models. Stateless; importing its module imports nothing heavy."""

    name: ClassVar[str]
    #: Kinds of device that it runs on.
    devices: ClassVar[frozenset[str]]
    #: Precisions that it can be asked for; whether they are equal for a model on a device, it finds out itself.
    precisions: ClassVar[frozenset[str]] = frozenset(PRECISIONS[1:])
    #: The extra that has its libraries; None: they are always there.
    extra: ClassVar[str | None] = None
    #: Whether `auto` may choose it.
    automatic: ClassVar[bool] = True
    #: Whether a model that it recognises is no other engine's business.
    exclusive: ClassVar[bool] = False

    @property
    def lacking(self) -> str | None:
        """Which of its libraries is not installed, and what installs it; None where all are there."""
        return None if self.extra is None else missing("it", self.extra)

    def recognises(self, model: str) -> bool:
        """Return whether a model of this name is this engine's business; decided by the name alone."""
        return True

    def describe(self, request: LoadRequest) -> EncoderSpec:
        """The model's spec, without loading weights."""
        return request.spec

    def locate(self, request: LoadRequest) -> LocatedModel:
        """Return where the model lies: its folder, or the file of its weights."""
        return request.located

    def tokenizer(self, request: LoadRequest) -> CountingTokenizer:
        """Return what texts are cut by; loads no weights. Raises `UnknownModelError` where the model has none."""
        return model_tokenizer(request.layout, cache_directory=request.cache_directory, revision=request.spec.revision)

    def count_tokens(self, request: LoadRequest) -> CountTokens:
        """Return what counts the tokens of texts; loads no weights. Raises `UnknownModelError` as `tokenizer` does."""
        return self.tokenizer(request).counts

    def weight_files(self, request: LoadRequest) -> list[Path]:
        """The files that a load reads weights from."""
        return weight_files(request.layout.directory, request.layout.module_directories)

    def memory_needed(self, request: LoadRequest) -> int:
        """Bytes that a load takes on the request's device at its highest, estimated from what lies on disk."""
        width = 2 if request.precision in {"bfloat16", "float16"} else 4
        return count_parameters(self.weight_files(request)) * width + WORKING_BYTES

    def measured_folder(self, request: LoadRequest) -> MeasuredFolder | None:
        """Return the folder of what a load makes of the model and measures, made or not; None where it does not."""
        return None

    def access(self, request: LoadRequest) -> str:
        """Return a name for the way in which the model is reached, where that is no matter of this machine alone."""
        return ""

    @abstractmethod
    def refusal(self, request: LoadRequest) -> str | None:
        """Return why this engine cannot run the model, as its configuration shows; None if it may. Loads no weights."""

    @abstractmethod
    def load(self, request: LoadRequest, reason: str) -> Encoder:
        """The loaded model; `reason` goes into its `EngineChoice`.

        Raises `EngineRefusedError` where only trying shows that the model is not reproduced, and
        `UnknownModelError` where the model itself is at fault.
        """


def named(precisions: Mapping[str, str]) -> str:
    """`bfloat16`, or `image float32, text bfloat16` where a model's parts differ."""
    if len(set(precisions.values())) == 1:
        return next(iter(precisions.values()))
    return ", ".join(f"{part} {precision}" for part, precision in precisions.items())


def require_texts(items: Sequence[str | Path | bytes], model: str) -> list[str]:
    """`items` as texts that tokenizers take; raises `ItemError` where one is an image."""
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise ItemError(f"item {position} is an image, and {model} encodes text only")
    return [encodable(str(item)) for item in items]
