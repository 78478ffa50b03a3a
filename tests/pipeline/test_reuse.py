"""Each content is encoded once, and whatever is reused, every row has the vector of its own content."""

import logging
import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.encoders.tiny_clips import build_clip
from tests.pipeline.files.gallery import REFUSED_RED, Gallery, picture
from tests.pipeline.files.installation import DAY, Installation, install, paragraphs
from tests.servers import redis
from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.pipeline import reuse as reuse_module
from vectorize_pipelines.pipeline.reuse import JUDGED_AFTER_ROWS, VectorReuse, content_key
from vectorize_pipelines.pipeline.writing import DirectWriter, write_batch
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.damage import left_aside
from vectorize_pipelines.state.embedding_cache import (
    EmbeddingCacheError,
    EmbeddingCacheFullError,
    EmbeddingCacheUnavailableError,
    Vector,
)
from vectorize_pipelines.state.embedding_cache.sqlite import SQLiteEmbeddingCache

pytestmark = pytest.mark.slow

LIMIT = 2**20
WORDS = ("caf\u00e9", "tea", "rum", "milk")


def vector(seed: int, dimension: int = 384) -> Vector:
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)


def key(number: int) -> bytes:
    return number.to_bytes(16)


def text_item(text: str) -> Item:
    return Item("source", 0, Modality.TEXT, text, None, content_hash(text), datetime.now(UTC))


@pytest.fixture
def installation(tmp_path: Path, shared_parsers: None) -> Installation:
    return install(tmp_path / "installation", cache="auto")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_clip(tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture
def gallery(tmp_path: Path, clip: str) -> Gallery:
    return Gallery(tmp_path / "installation", clip)


def test_the_same_content_is_encoded_once_in_a_run_and_not_again_in_the_next(installation: Installation) -> None:
    for n in range(3):
        installation.write(f"{n}.md", paragraphs(1))
    first = installation.run().totals.sum()
    assert (first.chunks, first.encoded, first.deduplicated, first.cache_hits) == (3, 1, 2, 0)
    installation.write("other.md", paragraphs(1, 2))
    installation.store.drop(installation.store.collections()[0].physical)
    second = installation.run().totals.sum()
    assert (second.chunks, second.encoded, second.deduplicated, second.cache_hits) == (5, 1, 3, 1)
    assert second.cache_seconds > 0
    assert len(installation.encoder.texts) == 2
    assert len(installation.rows()) == 5


def test_with_force_everything_is_encoded_anew(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1, 2))
    installation.run()
    totals = installation.run(force=True).totals.sum()
    assert (totals.encoded, totals.cache_hits) == (2, 0)


def test_a_run_with_nothing_to_encode_opens_no_cache(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1))
    installation.run()
    file = home.embedding_cache(installation.settings)
    file.unlink()
    installation.run()
    assert not file.exists()


def with_redis(home: Path, url: str) -> Installation:
    """A machine that shares nothing but Redis with others."""
    installation = install(home, cache="on")
    section = load_settings({}, home, redis={"url": url}).redis
    installation.settings = installation.settings.model_copy(update={"redis": section})
    return installation


def test_machines_share_vectors_by_redis_and_go_on_without_it(
    tmp_path: Path, redis_program: None, shared_parsers: None, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.running() as server:
        one, other = with_redis(tmp_path / "one", server.url), with_redis(tmp_path / "other", server.url)
        one.write("a.md", paragraphs(1, 2))
        assert one.run().totals.sum().encoded == 2
        other.write("b.md", paragraphs(2, 3))
        totals = other.run().totals.sum()
        assert (totals.encoded, totals.cache_hits) == (1, 1)
        assert not home.embedding_cache(other.settings).exists()
        server.kill()
        other.write("c.md", paragraphs(1, 4))
        totals = other.run().totals.sum()
        assert (totals.encoded, totals.cache_hits, totals.failed) == (2, 0, 0)
        (told,) = [record.message for record in caplog.records if "embedding cache" in record.message]
        assert told.startswith("going on without the embedding cache: Redis at 127.0.0.1:")
        server.start()
        one.write("d.md", paragraphs(5))
        assert one.run().totals.sum().encoded == 1
        other.write("d.md", paragraphs(5))
        assert other.run().totals.sum().cache_hits == 1
    assert len(one.rows()) == 3
    assert len(other.rows()) == 5


def test_texts_that_differ_before_normalisation_keep_vectors_of_their_own(installation: Installation) -> None:
    installation.write("composed.md", "A caf\u00e9 by the harbour.")
    installation.write("decomposed.md", "A cafe\u0301 by the harbour.")
    assert installation.run().totals.sum().encoded == 2
    installation.rows()  # holds each vector against its text


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    runs=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(["a.md", "b.md", "c.md", "d.md"]), st.sampled_from(WORDS), min_size=1),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    rows_together=st.integers(1, 3),
    remembered=st.integers(1, 3),
)
def test_whatever_repeats_every_row_has_the_vector_of_its_own_content(
    runs: list[tuple[dict[str, str], bool]],
    rows_together: int,
    remembered: int,
    tmp_path_factory: pytest.TempPathFactory,
    shared_parsers: None,
) -> None:
    installation = install(tmp_path_factory.mktemp("runs") / "installation", cache="on")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reuse_module, "REMEMBERED", remembered)
        for number, (files, force) in enumerate(runs):
            for name, word in files.items():
                # Equal but for Unicode normalisation: other content to this project, unless it is the same file's.
                form: Literal["NFC", "NFD"] = "NFC" if name in ("a.md", "b.md") else "NFD"
                text = unicodedata.normalize(form, f"Of {word} they drink much.")
                installation.write(name, text, DAY.replace(minute=number))
            with installation.open(force=force) as stream:
                stream.items.rows_together = rows_together
                for batch in stream:
                    write_batch(DirectWriter(installation.settings, installation.store), batch)
            assert installation.rows()
    if not any(force for _, force in runs):
        assert len(installation.encoder.texts) == len(set(installation.encoder.texts))


def test_duplicates_of_a_refused_image_are_refused_each(gallery: Gallery) -> None:
    for name in ("a", "b", "c"):
        (gallery.folder / f"{name}.png").write_bytes(picture(REFUSED_RED, 1))
    for name in ("d", "e"):
        (gallery.folder / f"{name}.png").write_bytes(picture(1, 1))
    stream = gallery.run()
    totals = stream.totals.sum()
    assert (totals.documents, totals.failed, totals.encoded, totals.deduplicated) == (5, 3, 1, 1)
    assert sorted(Path(each.source_id).name for each in stream.failures) == ["a.png", "b.png", "c.png"]
    again = gallery.run().totals.sum()
    assert (again.failed, again.encoded) == (3, 0)
    assert set(gallery.vectors()) == {"d.png", "e.png"}


def test_the_vector_of_an_image_that_changed_meanwhile_is_given_to_no_other(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing, other = gallery.folder / "a.png", gallery.folder / "b.png"
    before, after = picture(1, 2), picture(3, 4)
    changing.write_bytes(before)
    other.write_bytes(before)
    really = gallery.encoder.encode_each

    def changed_first(items: Sequence[object], *rest: object) -> object:
        changing.write_bytes(after)
        return really(items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gallery.encoder, "encode_each", changed_first)
    gallery.run()
    assert np.array_equal(gallery.vectors()["b.png"], gallery.encoder.vector(before))
    with_cache = SQLiteEmbeddingCache(home.embedding_cache(gallery.settings), LIMIT)
    cached = with_cache.get(gallery.encoder.spec.fingerprint, [bytes.fromhex(content_hash(before))])
    with_cache.close()
    assert all(np.array_equal(each, gallery.encoder.vector(before)) for each in cached.values())


def test_a_damaged_cache_fails_no_run_and_is_made_again(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    file = home.embedding_cache(installation.settings)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database" * 1000)
    installation.write("a.md", paragraphs(1))
    installation.write("b.md", paragraphs(2))
    assert installation.run().totals.sum().encoded == 2
    assert [record.message for record in caplog.records if "damaged" in record.message]
    assert file.read_bytes().startswith(b"SQLite format 3")
    (aside,) = left_aside(file.parent)
    assert aside.read_bytes() == b"no database" * 1000


def test_a_locked_cache_fails_no_run(
    installation: Installation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vectorize_pipelines.state.embedding_cache.sqlite.BUSY_SECONDS", 0.0)
    installation.write("a.md", paragraphs(1))
    installation.run()
    other = sqlite3.connect(home.embedding_cache(installation.settings), isolation_level=None)
    other.execute("begin immediate")
    installation.write("b.md", paragraphs(2, 3))
    assert installation.run().totals.sum().encoded == 2
    other.close()
    assert len([record for record in caplog.records if "going on without" in record.message]) == 1
    assert len(installation.rows()) == 3


class TimedCache:
    """A cache in memory of which every call takes so many seconds by the clock."""

    def __init__(self, seconds: float, get_fails: Exception | None = None, put_fails: Exception | None = None) -> None:
        self.clock = 0.0
        self.calls = 0
        self.get_fails, self.put_fails = get_fails, put_fails
        self._seconds = seconds
        self._vectors: dict[bytes, Vector] = {}

    def _call(self, failure: Exception | None) -> None:
        self.clock += self._seconds
        self.calls += 1
        if failure is not None:
            raise failure

    def get(self, fingerprint: str, hashes: Sequence[bytes]) -> dict[bytes, Vector]:
        self._call(self.get_fails)
        return {each: self._vectors[each] for each in hashes if each in self._vectors}

    def put(self, fingerprint: str, vectors: Mapping[bytes, Vector]) -> None:
        self._call(self.put_fails)
        self._vectors.update(vectors)

    def close(self) -> None:
        """Nothing to let go of."""


def batches(reuse: VectorReuse, encode_seconds: float, *, known: int = 0) -> Iterator[int]:
    """Batches of 500 rows, encoded in so many seconds each; of each, `known` rows are of a text of their own again."""
    number = 0
    while True:
        items = [text_item(f"again {n}") for n in range(known)] + [
            text_item(f"text {number} {n}") for n in range(500 - known)
        ]
        by_key = {content_key(item): item for item in items}
        found = reuse.cached(list(by_key))
        encoded = {each: (item, vector(1)) for each, item in by_key.items() if each not in found}
        reuse.cache(encoded, encode_seconds)
        number += 1
        yield number


@pytest.mark.parametrize(
    ("mode", "cache_seconds", "encode_seconds", "known", "stays"),
    [
        ("auto", 0.01, 5.0, 0, True),  # a first run: no hits, but filling costs next to nothing
        ("auto", 0.01, 0.1, 0, False),  # 20 % of the encoding for nothing
        ("auto", 0.01, 0.1, 250, True),  # pays by its hits
        ("auto", 0.01, 0.001, 250, False),  # an encoder faster than the cache
        ("on", 0.01, 0.001, 0, True),
    ],
)
def test_auto_turns_the_cache_off_where_it_does_not_pay(
    mode: Literal["auto", "on"],
    cache_seconds: float,
    encode_seconds: float,
    known: int,
    stays: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    cache = TimedCache(cache_seconds)
    reuse = VectorReuse("model", lambda: cache, mode=mode, clock=lambda: cache.clock)
    running = batches(reuse, encode_seconds, known=known)
    for _ in range(JUDGED_AFTER_ROWS // 500):
        number = next(running)
        assert cache.calls == 2 * number, "not judged before"
    before = cache.calls
    next(running)
    assert (cache.calls > before) is stays
    assert bool([record for record in caplog.records if "cache off" in record.message]) is not stays


def test_a_cache_that_fails_is_asked_once_and_the_run_still_shares(caplog: pytest.LogCaptureFixture) -> None:
    cache = TimedCache(0.0, EmbeddingCacheError("broken"))
    reuse = VectorReuse("model", lambda: cache)
    item = text_item("one")
    assert reuse.cached([content_key(item)]) == {}
    assert reuse.cache({content_key(item): (item, vector(1))}, 1.0) == {content_key(item)}
    assert reuse.cached([key(2)]) == {}
    assert list(reuse.recent([content_key(item)])) == [content_key(item)]
    assert cache.calls == 1
    assert len(caplog.records) == 1


def look_up(reuse: VectorReuse, number: int) -> bool:
    """Look a text up, encode it where it is not there, and return whether it was."""
    item = text_item(f"text {number}")
    key = content_key(item)
    found = reuse.cached([key])
    if not found:
        reuse.cache({key: (item, vector(number))}, 1.0)
    return bool(found)


def test_a_cache_that_is_away_is_done_without_and_used_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = TimedCache(0.5)
    reuse = VectorReuse("model", lambda: cache, clock=lambda: cache.clock)
    assert not look_up(reuse, 1)
    cache.get_fails = cache.put_fails = EmbeddingCacheUnavailableError("it is away")
    calls = []
    for _ in range(100):
        before = cache.calls
        assert not look_up(reuse, 2), "it is encoded"
        calls.append(cache.calls - before)
        cache.clock += 1
    assert calls[0] == 1, "no vector is offered to a cache that has just failed"
    assert sum(calls) == 6, "after 2, 4, 8, 16 and 32 seconds"
    cache.get_fails = cache.put_fails = None
    cache.clock += reuse_module.LONGEST_PAUSE_SECONDS
    assert look_up(reuse, 1)
    assert not look_up(reuse, 3)
    assert look_up(reuse, 3)
    assert [record.message for record in caplog.records] == [
        "going on without the embedding cache: it is away",
        "the embedding cache is used again",
    ]


def test_a_cache_that_is_full_is_still_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = TimedCache(0.0)
    reuse = VectorReuse("model", lambda: cache, clock=lambda: cache.clock)
    assert not look_up(reuse, 1)
    cache.put_fails = EmbeddingCacheFullError("no room")
    for _ in range(3):
        assert look_up(reuse, 1)
        assert not look_up(reuse, 2)
    item = text_item("text 2")
    before = cache.calls
    reuse.cache_once({content_key(item): (item, vector(2))})
    assert cache.calls == before, "it was full a moment ago"
    cache.put_fails = None
    cache.clock += reuse_module.FIRST_PAUSE_SECONDS
    reuse.cache_once({content_key(item): (item, vector(2))})
    assert look_up(reuse, 2)
    assert [record.message for record in caplog.records] == [
        "the embedding cache keeps nothing more: no room",
        "the embedding cache keeps vectors again",
    ]


def test_waiting_for_a_cache_that_is_away_does_not_turn_it_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = TimedCache(4.0, *[EmbeddingCacheUnavailableError("no answer")] * 2)
    reuse = VectorReuse("model", lambda: cache, clock=lambda: cache.clock)
    running = batches(reuse, 1.0)
    for _ in range(2 * JUDGED_AFTER_ROWS // 500):
        next(running)
    assert [record.message for record in caplog.records] == ["going on without the embedding cache: no answer"]


def test_on_and_off_are_words_in_yaml_too(tmp_path: Path) -> None:
    for written, meant in (("off", "off"), ("on", "on"), ("auto", "auto")):
        (tmp_path / "vectorize.yaml").write_text(f"cache: {{enabled: {written}}}\n")
        assert load_settings({}, tmp_path).cache.enabled == meant
    with pytest.raises(SettingsError, match=r"cache\.enabled"):
        load_settings({"VECTORIZE_CACHE__ENABLED": "perhaps"}, tmp_path)
