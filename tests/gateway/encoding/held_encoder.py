"""An encoder without a model that tests can hold up, so that they decide what waits while a call is under way."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, EngineChoice, Purpose, Vectors
from vectorize_pipelines.errors import ItemError

DIMENSION = 8
QUERY_PROMPT = "query: "

#: A text that begins so is refused by itself; one that is this fails its whole call, or gets a vector without numbers.
REFUSED, POISON, NUMBERLESS = "refused", "poison", "numberless"

#: Nothing takes so long.
SECONDS = 60.0


def vector_of(content: str | bytes, purpose: Purpose = "document") -> Vectors:
    """The vector that `HeldEncoder` gives a content."""
    data = content if isinstance(content, bytes) else f"{QUERY_PROMPT if purpose == 'query' else ''}{content}".encode()
    numbers = np.frombuffer(hashlib.blake2b(data, digest_size=4 * DIMENSION).digest(), dtype="<u4")
    vector = (numbers / 2**31 - 1).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


class HeldEncoder(Encoder):
    """Notes its calls. While it is held, a call waits."""

    def __init__(self, name: str = "held", *, images: bool = False) -> None:
        modalities = frozenset({Modality.TEXT, *([Modality.IMAGE] if images else [])})
        self.spec = EncoderSpec(name, "0" * 12, DIMENSION, None, "mean", "", QUERY_PROMPT, modalities, True)
        self.choice = EngineChoice("held", "cpu", "float32", "for tests")
        self.calls: list[list[str | bytes]] = []
        self._free = threading.Event()
        self._free.set()
        self._begun = threading.Semaphore(0)

    def hold(self) -> None:
        """Have calls wait from now on."""
        self._free.clear()

    def let_go(self) -> None:
        """Have them go on."""
        self._free.set()

    async def begun(self) -> None:
        """Wait until one more call has begun."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=SECONDS), "no call has begun"

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        vectors, failures = self.encode_each(items, purpose)
        assert not failures
        return vectors

    def encode_each(
        self, items: Sequence[str | Path | bytes], purpose: Purpose = "document"
    ) -> tuple[Vectors, dict[int, ItemError]]:
        contents = [item for item in items if not isinstance(item, Path)]
        self.calls.append(contents)
        self._begun.release()
        assert self._free.wait(SECONDS), "nobody has let the call go on"
        if POISON in contents:
            raise RuntimeError("a secret of the server's")
        vectors = np.stack([vector_of(content, purpose) for content in contents])
        vectors[[content == NUMBERLESS for content in contents]] = np.nan
        refused = [position for position, content in enumerate(contents) if str(content).startswith(REFUSED)]
        return vectors, {position: ItemError("it is refused") for position in refused}

    def close(self) -> None:
        """Nothing to free."""


class Models:
    """Leases encoders by name, and notes which are leased."""

    def __init__(self, *encoders: HeldEncoder) -> None:
        self._encoders = {encoder.spec.name: encoder for encoder in encoders}
        self.leased: list[str] = []
        self.loads: list[str] = []
        self.returned = threading.Semaphore(0)

    @contextmanager
    def lease(self, model: str) -> Iterator[Encoder]:
        """The encoder of a model."""
        self.loads.append(model)
        self.leased.append(model)
        try:
            yield self._encoders[model]
        finally:
            self.leased.remove(model)
            self.returned.release()
