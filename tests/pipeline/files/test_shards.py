"""A folder that is brought up to date in shards ends as one that a single run brings up to date."""

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.attacks.killer_folder_run import installation_in, run
from tests.attacks.killer_run import RUN_SECONDS, end_once_paused
from tests.forks import Fork
from tests.pipeline.files.histories import carry_out, operations, run_until_killed
from tests.pipeline.files.installation import Installation, first_run_over, install, paragraphs
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import StateError
from vectorize_pipelines.pipeline.writing import DirectWriter, write_batch


@pytest.fixture
def installation(tmp_path: Path, shared_parsers: None) -> Installation:
    made = install(tmp_path / "installation")
    for n in range(12):
        made.write(f"sub{n % 3}/{n}.md", paragraphs(n, n + 100))
    return made


def names(installation: Installation) -> set[str]:
    return {name for name, _ in installation.rows()}


def everything(installation: Installation) -> set[str]:
    return {str(file.relative_to(installation.folder)) for file in installation.folder.rglob("*.md")}


def test_shards_together_do_what_one_run_does(installation: Installation) -> None:
    streams = [installation.run(shard=shard) for shard in Shard.layout(4)]
    assert sum(stream.totals.sum().documents for stream in streams) == 12
    assert names(installation) == everything(installation)
    before = installation.rows()
    assert installation.run().totals.sum().encoded == 0, "one run over the whole finds everything there"
    (installation.folder / "sub0/0.md").unlink()
    (installation.folder / "sub1/1.md").unlink()
    streams = [installation.run(shard=shard) for shard in Shard.layout(3)]
    assert sum(stream.totals.sum().deleted for stream in streams) == 4
    gone = ("sub0/0.md", "sub1/1.md")
    assert installation.rows() == {key: row for key, row in before.items() if key[0] not in gone}


def test_a_shard_leaves_the_files_of_others_alone(installation: Installation) -> None:
    shard = Shard(1, 3)
    owned = {name for name in everything(installation) if shard.owns_source(str(installation.folder / name))}
    assert owned
    assert owned != everything(installation)
    installation.run(shard=shard)
    assert names(installation) == owned
    installation.run()
    shutil.rmtree(installation.folder)
    installation.folder.mkdir()
    installation.run(shard=shard)
    assert names(installation) == {f"sub{n % 3}/{n}.md" for n in range(12)} - owned


def test_shards_of_one_count_go_on_side_by_side(installation: Installation) -> None:
    first, second = Shard.layout(2)
    with installation.open(shard=first) as stream:
        batches = iter(stream)
        write_batch(DirectWriter(installation.settings, installation.store), next(batches))
        installation.run(shard=second)
        for batch in batches:
            write_batch(DirectWriter(installation.settings, installation.store), batch)
        stream.reported()
    assert names(installation) == everything(installation)


def test_days_that_a_shard_has_not_reported_are_not_taken_for_reported_by_another(installation: Installation) -> None:
    first, second = Shard.layout(2)
    assert installation.run(shard=first, report=False).touched == {"2024-03-01"}
    installation.run(shard=second)
    assert installation.run(shard=second).touched == set()
    assert installation.run(shard=first).touched == {"2024-03-01"}
    assert installation.run(shard=first).touched == set()


@pytest.mark.parametrize(("held", "waiting"), [(Shard(0, 2), WHOLE), (WHOLE, Shard(0, 2)), (Shard(0, 2), Shard(0, 2))])
def test_the_whole_and_its_shards_wait_for_each_other(
    installation: Installation, held: Shard, waiting: Shard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vectorize_pipelines")
    with ThreadPoolExecutor(1) as thread:
        with installation.open(shard=held) as stream:
            waited = thread.submit(installation.run, shard=waiting)
            while "waiting for" not in caplog.text:
                assert not waited.done(), waited.result()
                time.sleep(0.05)
            for batch in stream:
                write_batch(DirectWriter(installation.settings, installation.store), batch)
            assert not waited.done()
        waited.result()
    installation.run()
    assert names(installation) == everything(installation)


def test_shards_of_another_count_are_refused_meanwhile(installation: Installation) -> None:
    with installation.open(shard=Shard(0, 2)), pytest.raises(StateError, match=r"0/2.*same count"):
        installation.run(shard=Shard(1, 3))
    installation.run(shard=Shard(1, 3))


def test_rows_that_others_deleted_come_back_with_a_shard_that_is_alone(installation: Installation) -> None:
    from vectorize_pipelines.stores.filters.expressions import Equal

    for shard in Shard.layout(2):
        installation.run(shard=shard)
    before = installation.rows()
    installation.store.delete(installation.store.collections()[0].physical, Equal("item_index", 1))
    for shard in Shard.layout(2):
        installation.run(shard=shard)
    assert installation.rows() == before


def test_rows_that_a_disk_set_back_come_back_beside_other_shards(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.stores.filters.expressions import Equal

    first, second = Shard.layout(2)
    installation.run()
    before = installation.rows()
    with installation.open(shard=first), monkeypatch.context() as set_back:
        installation.store.delete(installation.store.collections()[0].physical, Equal("item_index", 1))
        set_back.setattr(installation.store, "is_doubtful", lambda _: True)
        set_back.setattr(installation.store, "trust", pytest.fail)
        installation.run(shard=second)
    owned = {name for name in everything(installation) if second.owns_source(str(installation.folder / name))}
    found = installation.rows()
    assert {key: row for key, row in found.items() if key[0] in owned} == {
        key: row for key, row in before.items() if key[0] in owned
    }
    assert len(found) < len(before), "the other shard's are still missing"


@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    history=st.lists(
        st.one_of(
            operations,
            st.tuples(st.just("shards"), st.permutations(range(4))),
            st.tuples(st.just("shard"), st.integers(0, 2), st.just(3)),
            st.tuples(st.just("killed-shard"), st.integers(0, 1), st.integers(0, 6)),
        ),
        max_size=12,
    )
)
@example(history=[("write", "a.md", (1,), 0), ("killed-shard", 0, 2), ("killed-shard", 1, 2), ("delete", "a.md")])
@example(history=[("write", "a.md", (1, 2), 0), ("shards", (0, 1, 2, 3)), ("rename", "a.md", "sub/d.md")])
@pytest.mark.slow
def test_any_history_in_shards_ends_in_the_same_rows_as_one_run(
    history: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory, shared_parsers: None
) -> None:
    installation = install(tmp_path_factory.mktemp("history") / "installation")
    for operation in history:
        match operation:
            case ("shards", order):
                for index in order:
                    installation.run(shard=Shard(index, len(order)))
            case ("shard", index, count):
                installation.run(shard=Shard(index, count))
            case ("killed-shard", index, effects):
                run_until_killed(installation, effects, shard=Shard(index, 2))
            case _:
                carry_out(installation, operation)
    for shard in Shard.layout(4):
        installation.run(shard=shard)
    fresh = first_run_over(installation, tmp_path_factory.mktemp("fresh") / "installation")
    assert installation.rows() == fresh.rows()
    already = len(installation.encoder.texts)
    installation.run()
    assert len(installation.encoder.texts) == already


@pytest.mark.timeout(900)
def test_a_shard_whose_process_is_killed_is_repeated_beside_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    installation = installation_in(tmp_path / "home", folder)
    installation.settings.home.mkdir(exist_ok=True)
    for n in range(30):
        installation.write(f"{n}.md", paragraphs(n, n + 100))

    def start(index: int, mode: str = "deadly") -> Fork:
        log = installation.settings.home / f"{index}.log"
        return Fork(run, installation.settings.home, folder, mode, False, f"{index}/3", err=log)

    killed, other = start(0, "pausing"), start(1)
    end_once_paused(killed, installation.settings.home, signal.SIGKILL)
    repeated, third = start(0), start(2)
    assert [child.wait(RUN_SECONDS) for child in (other, repeated, third)] == [0, 0, 0]
    assert names(installation) == {f"{n}.md" for n in range(30)}
    (folder / "7.md").unlink()
    assert [child.wait(RUN_SECONDS) for child in [start(index) for index in range(3)]] == [0, 0, 0]
    assert names(installation) == {f"{n}.md" for n in range(30)} - {"7.md"}
    assert installation.run().totals.sum().encoded == 0
