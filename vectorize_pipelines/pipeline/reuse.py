"""Encodes each content once: what this run has encoded already, and what the embedding cache holds.

Called by `pipeline.encoding` in the encoding thread, between the rows whose vectors the store has and the encoder: no
content that is found here is tokenized or decoded. A content is known by a hash of its exact bytes, not by the
record's `content_hash`: that one is the same for texts which differ before Unicode normalisation, and a tokenizer may
tell them apart.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Literal

from vectorize_pipelines.core.items import Item, content_hash
from vectorize_pipelines.core.retrying import growing_pauses
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import UnreadableFileError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.state.embedding_cache import (
    EmbeddingCache,
    EmbeddingCacheError,
    EmbeddingCacheFullError,
    EmbeddingCacheUnavailableError,
    Vector,
    open_embedding_cache,
)

logger = logging.getLogger(__name__)

#: Vectors of this run that are at hand; 6 MiB at 384 dimensions.
REMEMBERED = 4096
#: Rows looked up before the cache is judged, and the share of the encoding time that it may cost on balance.
JUDGED_AFTER_ROWS = 2000
TOLERATED_SHARE = 0.05
#: A cache that is away is asked again after so long, then after twice as long, and so on; at most this long.
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0


def content_key(item: Item) -> bytes:
    """16 bytes that stand for exactly what the encoder is given.

    A file is known by the bytes that were read when its item was made: `VectorReuse.cache` makes sure that the encoder
    saw the same ones. Raises `ValueError` for an item with neither text nor content.
    """
    if item.text is not None:
        data = item.text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16, person=b"text").digest()
    if isinstance(item.content, bytes):
        return hashlib.blake2b(item.content, digest_size=16).digest()
    if item.content is None:
        raise ValueError(f"{item.source_id} has neither text nor content to encode")
    return bytes.fromhex(item.content_hash)


class Pause:
    """Calls that are left out for a while after one has failed; said once, and once more when one succeeds again.

    Safe for use by several threads.
    """

    def __init__(self, failing: str, works: str, clock: Callable[[], float]):
        """`failing` and `works` are what is said; `clock` gives seconds."""
        self._failing = failing
        self._works = works
        self._clock = clock
        self._lock = Lock()
        self._lengths: Iterator[float] | None = None
        self._until = 0.0

    @property
    def over(self) -> bool:
        """True where the call may be made."""
        return self._lengths is None or self._clock() >= self._until

    def begin(self, error: Exception) -> None:
        """Note that the call has failed."""
        with self._lock:
            if self._lengths is None:
                self._lengths = growing_pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
                logger.warning("%s: %s", self._failing, error)
            self._until = self._clock() + next(self._lengths)

    def end(self) -> None:
        """Note that the call has succeeded."""
        with self._lock:
            if self._lengths is not None:
                self._lengths = None
                logger.info(self._works)


class VectorReuse:
    """The vectors that a run need not make again, for one model. Used by one thread.

    `open_cache` is called once there is something to encode; None: no cache. With `force` nothing is taken from the
    cache, but what is encoded replaces what it held. A cache that is away or full is done without, for growing pauses;
    one that fails otherwise is left alone for the rest of the run.

    With `mode` `auto` it measures itself. Cost: the seconds that looking up, checking and storing take, but for what a
    cache that failed was waited for. Saving: rows found in the cache, times the mean seconds in which this run encoded
    a row. After `JUDGED_AFTER_ROWS` rows, once the cost exceeds the saving by more than `TOLERATED_SHARE` of the time
    spent encoding, the cache is left alone for the rest of the run, and images in files, which have to be read again
    to be checked, are no longer compared. So a first run, which finds nothing, fills the cache where that is cheap
    beside encoding, and an encoder as fast as the cache is not slowed down. A run that encodes nothing is not judged:
    there is nothing to compare with.
    """

    def __init__(
        self,
        fingerprint: str,
        open_cache: Callable[[], EmbeddingCache] | None,
        *,
        mode: Literal["auto", "on"] = "auto",
        force: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """`fingerprint` is the model's own, whatever way documents are cut; `clock` gives seconds."""
        self._fingerprint = fingerprint
        self._open_cache = open_cache
        self._open_once = open_cache
        self._mode = mode
        self._force = force
        self._clock = clock
        self._cache: EmbeddingCache | None = None
        self._recent: OrderedDict[bytes, Vector] = OrderedDict()
        self._checks_files = True
        self._looked_up = self._hits = self._encoded = 0
        self._encode_seconds = 0.0
        self._away = Pause("going on without the embedding cache", "the embedding cache is used again", clock)
        self._full = Pause("the embedding cache keeps nothing more", "the embedding cache keeps vectors again", clock)
        self._seconds_away = 0.0
        self.seconds = 0.0

    def recent(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """Key -> vector, for contents that this run had before."""
        found = {key: self._recent[key] for key in keys if key in self._recent}
        for key in found:
            self._recent.move_to_end(key)
        return found

    def cached(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """Key -> vector, for contents that the cache holds."""
        started = self._clock()
        found: dict[bytes, Vector] = {}
        if keys and self._opened() and not self._force:
            found = self._attempt(lambda cache: cache.get(self._fingerprint, keys), self._away) or {}
        self._looked_up += len(keys)
        self._hits += len(found)
        self._remember(found)
        self.seconds += self._clock() - started
        return found

    def cache(self, encoded: Mapping[bytes, tuple[Item, Vector]], encode_seconds: float) -> set[bytes]:
        """Take what was just encoded, in how many seconds; return the keys whose vectors other rows may share.

        A file that is not the one its item was made from, any more, is left out: its vector may be of either.
        """
        started = self._clock()
        trusted = {key: vector for key, (item, vector) in encoded.items() if self._trusts(item)}
        self._remember(trusted)
        if trusted and self._opened():
            self._attempt(lambda cache: cache.put(self._fingerprint, trusted), self._away, self._full)
        self._encoded += len(encoded)
        self._encode_seconds += encode_seconds
        self.seconds += self._clock() - started
        self._judge()
        return set(trusted)

    def cache_once(self, encoded: Mapping[bytes, tuple[Item, Vector]]) -> None:
        """Put what was encoded into the cache, also where it has been left alone. Called from any thread.

        A file that is not the one its item was made from, any more, is left out.
        """
        if self._open_once is None or not (self._away.over and self._full.over):
            return
        try:
            cache = self._open_once()
            try:
                cache.put(
                    self._fingerprint,
                    {key: vector for key, (item, vector) in encoded.items() if _is_of_its_item(item)},
                )
            finally:
                cache.close()
            self._away.end()
            self._full.end()
        except EmbeddingCacheError as error:
            if not self._paused(error):
                logger.warning("not all that was encoded is in the embedding cache: %s", error)

    def close(self) -> None:
        """Let go of the cache."""
        if self._cache is not None:
            self._cache.close()
        self._cache = self._open_cache = None

    def _opened(self) -> bool:
        """Return whether there is a cache, which is opened where it is not yet."""
        if self._cache is None and self._open_cache is not None:
            try:
                self._cache = self._open_cache()
            except EmbeddingCacheError as error:
                self._give_up(error)
        return self._cache is not None

    def _attempt(
        self, call: Callable[[EmbeddingCache], dict[bytes, Vector] | None], *pauses: Pause
    ) -> dict[bytes, Vector] | None:
        """Return what the call does, None where it fails, or is left out because one of the pauses lasts."""
        assert self._cache is not None, "called where _opened() said so"
        if not all(pause.over for pause in pauses):
            return None
        started = self._clock()
        try:
            result = call(self._cache)
        except EmbeddingCacheError as error:
            self._seconds_away += self._clock() - started
            if not self._paused(error):
                self._give_up(error)
            return None
        for pause in pauses:
            pause.end()
        return result

    def _paused(self, error: EmbeddingCacheError) -> bool:
        """Return whether the call may be made again later."""
        if isinstance(error, EmbeddingCacheUnavailableError):
            self._away.begin(error)
        elif isinstance(error, EmbeddingCacheFullError):
            self._full.begin(error)
        else:
            return False
        return True

    def _give_up(self, error: EmbeddingCacheError) -> None:
        logger.warning("going on without the embedding cache: %s", error)
        self.close()

    def _remember(self, vectors: Mapping[bytes, Vector]) -> None:
        self._recent.update(vectors)
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _trusts(self, item: Item) -> bool:
        return not isinstance(item.content, Path) or (self._checks_files and _is_of_its_item(item))

    def _judge(self) -> None:
        """Turn the cache off where it does not pay."""
        if self._mode != "auto" or self._looked_up < JUDGED_AFTER_ROWS or not self._encoded:
            return
        saved = self._hits * self._encode_seconds / self._encoded
        cost = self.seconds - self._seconds_away
        if self._checks_files and cost - saved > TOLERATED_SHARE * self._encode_seconds:
            logger.info(
                "embedding cache off for the rest of this run: it took %.2f s for %d rows and saved %.2f s by %d hits, "
                "while encoding took %.2f s (cache.enabled is auto)",
                cost,
                self._looked_up,
                saved,
                self._hits,
                self._encode_seconds,
            )
            self._checks_files = False
            self.close()


def _is_of_its_item(item: Item) -> bool:
    """Return whether what was encoded is what the item was made from: a file may have changed meanwhile."""
    if not isinstance(item.content, Path):
        return True
    try:
        return content_hash(read_content(str(item.content), item.content.stat().st_size + 1)) == item.content_hash
    except (OSError, UnreadableFileError):
        return False


def configured_reuse(settings: Settings, spec: EncoderSpec, *, force: bool) -> VectorReuse:
    """What a run need not encode, as the settings say; opens nothing yet."""
    cache = settings.cache
    if cache.enabled == "off":
        return VectorReuse(spec.fingerprint, None, mode="on", force=force)
    return VectorReuse(spec.fingerprint, lambda: open_embedding_cache(settings), mode=cache.enabled, force=force)
