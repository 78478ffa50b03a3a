"""The encoder of a remote model: requests of all its callers run side by side."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

from vectorize_pipelines.core.image_limits import ImageLimits
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, EngineChoice, Metered, Purpose, Vectors
from vectorize_pipelines.encoders.engines.remote.connection import RemoteConnection
from vectorize_pipelines.encoders.engines.remote.tokenizer import EstimatedTokenizer
from vectorize_pipelines.encoders.models.tokenizer import encodable
from vectorize_pipelines.errors import ItemError, UnknownModelError
from vectorize_pipelines.images.decoding import read_image
from vectorize_pipelines.providers.embeddings import Input

#: Calls of `encode` that go on side by side; their requests share the keys anyway.
STREAMS = 4
#: Images are read, and sent in base64, up to so many bytes together.
BYTES_TOGETHER = 64 * 2**20
#: A vector shorter than this is left as it is.
SMALLEST_NORM = 1e-12


class RemoteEncoder(Encoder):
    """Vectors of a remote model, scaled to unit length."""

    def __init__(
        self,
        spec: EncoderSpec,
        choice: EngineChoice,
        connection: RemoteConnection,
        image_limits: ImageLimits,
        image_tokens: int,
    ):
        """`connection` is closed by `close`; `image_tokens` is what an image is taken to cost."""
        self.spec = spec
        self.choice = choice
        self._connection = connection
        self._image_limits = image_limits
        self._image_tokens = image_tokens
        self._tokenizer = EstimatedTokenizer()

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        """As in `Encoder`."""
        metered = self.encode_metered(items, purpose)
        for error in metered.errors.values():
            raise error
        return metered.vectors

    def encode_each(
        self, items: Sequence[str | Path | bytes], purpose: Purpose = "document"
    ) -> tuple[Vectors, dict[int, ItemError]]:
        """As in `Encoder`; an item fails that the provider refuses."""
        metered = self.encode_metered(items, purpose)
        return metered.vectors, metered.errors

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Metered:
        """As in `Encoder`. Raises `ProviderUnavailableError` and `KeysError`, which may pass."""
        import numpy as np

        del purpose  # the protocol knows no difference
        tokens = [0] * len(items)
        metered = Metered(np.full((len(items), self.spec.dimension), np.nan, dtype=np.float32), {}, tokens)
        for places in self._together(items):
            self._embed(items, places, metered, tokens)
        norms = np.linalg.norm(metered.vectors, axis=1, keepdims=True)
        metered.vectors /= np.maximum(norms, SMALLEST_NORM)
        return metered

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        """As in `Encoder`, estimated."""
        del purpose
        return [self._tokenizer.count(text) for text in texts]

    @property
    def streams(self) -> int:
        """As in `Encoder`."""
        return STREAMS

    def close(self) -> None:
        """As in `Encoder`."""
        self._connection.close()

    def _embed(
        self, items: Sequence[str | Path | bytes], places: Sequence[int], metered: Metered, tokens: list[int]
    ) -> None:
        """Embed the items at these places, and put in what became of them, and the tokens that each took."""
        inputs: dict[int, Input] = {}
        for place in places:
            try:
                inputs[place] = self._input(items[place])
            except ItemError as error:
                metered.errors[place] = error
        estimated = [self._tokens(items[place]) for place in inputs]
        embedded = self._connection.embed(list(inputs.values()), estimated)
        metered.cost += embedded.cost
        for n, place in enumerate(inputs):
            vector = embedded.vectors[n]
            if vector is None:
                metered.errors[place] = embedded.errors[n]
                continue
            if len(vector) != self.spec.dimension:
                raise UnknownModelError(
                    f"{self.spec.name} gives vectors of {len(vector)} dimensions, and gave {self.spec.dimension} when "
                    "it was first asked: the provider has another model under this name now"
                )
            metered.vectors[place] = vector
            tokens[place] = embedded.tokens[n]

    def _input(self, item: str | Path | bytes) -> Input:
        """Return an item as the provider takes it. Raises `ItemError`."""
        takes_images = Modality.IMAGE in self.spec.modalities
        if isinstance(item, str):
            return {"text": encodable(item)} if takes_images else encodable(item)
        if not takes_images:
            raise ItemError(
                f"{self.spec.name} embeds text only; where it embeds images too, name it in "
                "providers.image_embedding_models"
            )
        return {"image": b64encode(read_image(item, self._image_limits)).decode()}

    def _tokens(self, item: str | Path | bytes) -> int:
        return self._tokenizer.count(item) if isinstance(item, str) else self._image_tokens

    def _together(self, items: Sequence[str | Path | bytes]) -> Iterator[list[int]]:
        """Yield the places of items that may be in memory at once."""
        places: list[int] = []
        total = 0
        for place, item in enumerate(items):
            size = min(self._image_limits.max_bytes, _size(item))
            if places and total + size > BYTES_TOGETHER:
                yield places
                places, total = [], 0
            places.append(place)
            total += size
        if places:
            yield places


def _size(item: str | Path | bytes) -> int:
    """Return the bytes of an item; 0 for a file that is not there, which reading it will say."""
    if isinstance(item, Path):
        try:
            return item.stat().st_size
        except OSError:
            return 0
    return len(item)
