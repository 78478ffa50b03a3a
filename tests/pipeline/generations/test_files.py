"""A collection of files gets another model, or other passages: the files are neither read nor encoded for nothing."""

import os
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.encoders.tiny_clips import build_clip
from tests.images.pictures import encoded, photo
from tests.pipeline.generations.two_models import NEW, NOON, OLD, HashEncoder, Writers, vector_of
from vectorize_pipelines.errors import ModelMismatchError
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.documents import DocumentReader, compare_corpus, corpus_default, corpus_source
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.files.images import ImageReader, gallery_default, gallery_source
from vectorize_pipelines.pipeline.files.stream import ChangeStream
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.pipeline.generations.begin import Wanted
from vectorize_pipelines.pipeline.generations.stream import ReembeddingStream, open_reembedding
from vectorize_pipelines.pipeline.writing import written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.state.generations import State, resolve_embedding_config
from vectorize_pipelines.stores import open_store

#: A model's vectors cut to other dimensions are another model.
SMALL = 16


class Folder(Writers):
    """A folder of documents or images, and its collection."""

    def __init__(self, home: Path, collection: str, image_model: str = "ViT-B/32"):
        self.folder = home / "files"
        self.folder.mkdir(parents=True)
        settings = load_settings(
            {
                "VECTORIZE_HOME": str(home),
                "VECTORIZE_CORPUS__PATH": str(self.folder),
                "VECTORIZE_MODELS__DIMENSION": str(OLD),
                "VECTORIZE_MODELS__IMAGE": image_model,
                "VECTORIZE_DOCUMENTS__CHUNK_TOKENS": "32",
                "VECTORIZE_DOCUMENTS__OVERLAP_TOKENS": "0",
                "VECTORIZE_CACHE__ENABLED": "off",
            }
        )
        encoders = {each: HashEncoder(each) for each in (SMALL, OLD, NEW)}
        super().__init__(settings, open_store(settings.store, settings.home), encoders)
        self.collection = collection
        self.model = image_model if collection == "gallery" else DEFAULT_TEXT_MODEL

    def put(self, name: str, content: bytes | str, seconds: int = 0) -> None:
        file = self.folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(file, (NOON.timestamp() + seconds,) * 2)

    def ingest(self, model: str = "") -> ChangeStream:
        today = datetime.now(UTC).date()
        images = self.collection == "gallery"
        default = gallery_default(self.settings) if images else corpus_default(self.settings)
        now = resolve_embedding_config(self.settings, self.collection, model, default)
        request = FolderRequest(self.collection, now.model, "drain", (today, today), "run")
        source = (gallery_source if images else corpus_source)(self.settings, str(self.folder))
        reader = (ImageReader if images else DocumentReader)(self.settings, now)
        lease = partial(self.lease, dimension=reader.spec.dimension)
        with (
            open_folder(self.settings, request, source, reader, self.store, lease) as stream,
            closing(self.mirrors()) as mirrors,
        ):
            for _ in written(mirrors, stream):
                pass
            stream.reported()
        return stream

    def again(self, dimension: int, **wanted: int) -> ReembeddingStream:
        asked = Wanted(self.model, dimension, **wanted)
        stream = open_reembedding(self.settings, self.store, self.collection, asked, None, "again", self.lease)
        with stream, closing(self.mirrors()) as mirrors:
            for _ in written(mirrors, stream):
                pass
        return stream

    def turn(self, how: str) -> None:
        with closing(self.generations()) as generations:
            getattr(switching, how)(self.settings, self.store, generations, self.collection)

    def of(self, dimension: int) -> dict[str, list[str]]:
        """File -> its passages in a generation, in order."""
        physical = next(
            each.physical
            for each in self.store.collections()
            if each.dimension == dimension and each.model == self.model
        )
        found: dict[str, list[tuple[int, str]]] = {}
        for batch in self.store.scan(physical, ("source_id", "item_index", "text", "content_hash", "vector")):
            for row in batch.to_pylist():
                if row["text"] is not None:
                    assert abs(vector_of(row["text"], dimension) - row["vector"]).max() < 1e-5
                name = os.path.relpath(row["source_id"], self.folder)
                found.setdefault(name, []).append((row["item_index"], row["text"] or row["content_hash"]))
        return {name: [text for _, text in sorted(rows)] for name, rows in found.items()}

    def asked(self) -> int:
        return sum(len(encoder.asked) for encoder in self.encoders.values())


def document(*numbers: int) -> str:
    return "\n\n".join(f"Paragraph {n} tells of a journey to the island number {n}. " * 2 for n in numbers)


@pytest.fixture
def corpus(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "installation", "corpus")
    folder.put("a.md", document(1, 2, 3))
    folder.put("b.md", document(4, 5))
    folder.ingest()
    return folder


@pytest.mark.slow
def test_after_a_switch_files_are_neither_read_nor_encoded_and_new_ones_get_the_new_model(corpus: Folder) -> None:
    corpus.again(NEW)
    corpus.turn("switch")
    asked = corpus.asked()
    assert not compare_corpus(corpus.settings).changed, "the sensor would launch a run"
    nothing = corpus.ingest()
    assert (nothing.totals.sum().encoded, nothing.totals.sum().chunks, nothing.touched) == (0, 5, set())
    assert corpus.asked() == asked

    corpus.put("a.md", document(1, 2), 1)
    corpus.put("c.md", document(6), 1)
    (corpus.folder / "b.md").unlink()
    assert corpus.ingest().totals.sum().encoded == 1
    assert corpus.of(NEW).keys() == {"a.md", "c.md"}
    assert corpus.of(NEW) == corpus.of(OLD)
    corpus.turn("rollback")
    asked = corpus.asked()
    assert not compare_corpus(corpus.settings).changed
    assert corpus.ingest().totals.sum().encoded == 0
    assert corpus.asked() == asked


def test_a_collection_that_is_embedded_again_keeps_its_model_whatever_the_settings_say(corpus: Folder) -> None:
    corpus.again(NEW)
    changed = {"text": "another/model", "image": corpus.settings.models.image, "dimension": None}
    corpus.settings = corpus.settings.model_copy(update={"models": corpus.settings.models.model_copy(update=changed)})
    corpus.put("c.md", document(7))
    assert corpus.ingest().totals.sum().encoded == 1, "the settings are for new collections"
    assert corpus.of(NEW) == corpus.of(OLD)


def test_a_collection_that_was_never_embedded_again_is_held_to_the_settings(corpus: Folder) -> None:
    changed = corpus.settings.models.model_copy(update={"dimension": SMALL})
    corpus.settings = corpus.settings.model_copy(update={"models": changed})
    with pytest.raises(ModelMismatchError, match="collections reembed"):
        corpus.ingest()


@pytest.mark.slow
def test_documents_are_cut_anew_while_they_change(corpus: Folder) -> None:
    corpus.put("gone.md", document(8))
    corpus.ingest()
    (corpus.folder / "gone.md").unlink()  # but its rows are there: no run has noticed
    stream = corpus.again(NEW, chunk_tokens=64)
    assert [failure.source_id.rsplit("/")[-1] for failure in stream.failures] == ["gone.md"]
    assert len(corpus.of(OLD)["a.md"]) == 3
    assert len(corpus.of(NEW)["a.md"]) < 3
    assert corpus.of(NEW)["gone.md"] == corpus.of(OLD)["gone.md"], "what cannot be read again keeps its passages"
    assert stream.totals.sum().chunks == sum(map(len, corpus.of(NEW).values()))

    corpus.put("a.md", document(1, 2, 3, 4, 5, 6), 1)  # grown
    corpus.put("b.md", document(4), 1)  # shrunk to what it begins with
    corpus.ingest()
    assert corpus.of(OLD).keys() == corpus.of(NEW).keys() == {"a.md", "b.md"}
    assert (len(corpus.of(OLD)["a.md"]), len(corpus.of(OLD)["b.md"])) == (6, 1)
    assert len(corpus.of(NEW)["a.md"]) < 6
    assert "".join(corpus.of(NEW)["b.md"]).split() == document(4).split()
    again = corpus.again(NEW, chunk_tokens=64).totals.sum()
    assert (again.encoded, again.chunks) == (0, sum(map(len, corpus.of(NEW).values())))
    with closing(corpus.generations()) as generations:
        assert [each.state for each in generations.of("corpus")] == [State.LIVE, State.READY]

    corpus.turn("switch")
    assert corpus.ingest().totals.sum().encoded == 0
    corpus.put("b.md", document(9, 10, 11), 2)
    corpus.ingest()  # cut for the new one, and anew for the old
    assert len(corpus.of(OLD)["b.md"]) == 3
    assert len(corpus.of(NEW)["b.md"]) < 3
    corpus.turn("rollback")
    assert corpus.ingest().totals.sum().encoded == 0


def test_a_document_that_shrinks_leaves_no_passage_of_before_where_it_is_cut_coarser(corpus: Folder) -> None:
    corpus.put("a.md", document(*range(12)), 1)
    corpus.ingest()
    corpus.again(NEW, chunk_tokens=64)
    fewer = document(*range(20, 28))
    corpus.put("a.md", fewer, 2)
    corpus.ingest()
    assert len(corpus.of(OLD)["a.md"]) > len(corpus.of(NEW)["a.md"])
    assert " ".join(corpus.of(NEW)["a.md"]).split() == fewer.split()


def test_images_are_read_again_and_those_that_have_changed_are_listed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clip = str(build_clip(tmp_path_factory.mktemp("models") / "clip"))
    gallery = Folder(tmp_path / "installation", "gallery", clip)
    for n in range(3):
        gallery.put(f"{n}.png", encoded(photo(n, 8, 8), "PNG"))
    gallery.ingest()
    before = gallery.of(OLD)
    gallery.put("1.png", encoded(photo(9, 8, 8), "PNG"), 1)  # not ingested yet
    stream = gallery.again(SMALL)
    assert [(Path(each.source_id).name, each.error_class) for each in stream.failures] == [
        ("1.png", "ChangedContentError")
    ]
    assert gallery.of(SMALL) == {name: hashes for name, hashes in before.items() if name != "1.png"}
    gallery.ingest()
    assert gallery.of(SMALL) == gallery.of(OLD)
    assert gallery.of(OLD)["1.png"] != before["1.png"]
    assert gallery.again(SMALL).failures == []
    gallery.turn("switch")
    asked = gallery.asked()
    assert gallery.ingest().touched == set()
    assert gallery.asked() == asked
