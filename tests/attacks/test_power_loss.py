"""The power goes at any moment: what was acknowledged is there, and the next run makes the rest what it should be.

Each kind of work is recorded once, and cut at many moments (`lossy_disk`). Of every cut the disk is made as it could
have been then, with or without what nobody had synchronized, and the next runs go on from there, on a machine that has
started again.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.attacks import lossy_disk, power_loss_work
from tests.attacks.lossy_disk import Disk, Recording
from tests.components import missing
from tests.pipeline.requests.installation import DIMENSION
from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.errors import CollectionNotFoundError, VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.stores.conformance.records import many
from vectorize_pipelines.stores.lancedb import durability as lancedb_durability
from vectorize_pipelines.stores.lancedb import maintenance as lancedb_maintenance
from vectorize_pipelines.stores.lancedb.marks import FOLDER, Mark, Marks
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

#: Together fifty, with `CUTS_AFTER_A_KILL` of both kinds.
CUTS = {"files": 18, "requests": 18, "collections": 8}
CUTS_AFTER_A_KILL = 3
#: How a run says that it has acknowledged a batch.
_ACKNOWLEDGED = {"files": "acknowledged", "requests": "offset "}
SEED = int(os.environ.get("POWER_LOSS_SEED", "1"))


@pytest.fixture(autouse=True)
def no_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lancedb_maintenance, "RETENTION", power_loss_work.NO_RETENTION)


@pytest.fixture(autouse=True)
def nothing_is_lost_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs after a loss of power are not recorded: synchronizing what they do takes most of the time."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: None)
    monkeypatch.setattr(lancedb_durability, "sync_file_system", lambda _: True)


@pytest.fixture(scope="module", autouse=True)
def strace() -> None:
    reason = lossy_disk.is_missing()
    if reason is not None:
        missing(reason)


@pytest.mark.parametrize("kind", CUTS)
def test_what_was_acknowledged_outlives_a_loss_of_power(kind: str, tmp_path: Path) -> None:
    recording = _recorded(kind, tmp_path)
    random = Random(SEED)
    for cut, (event, disk) in enumerate(recording.states_at(_moments(kind, recording, random))):
        try:
            _cut(kind, recording.said(event), disk, tmp_path / f"cut-{cut}", tmp_path / "documents", random)
        except BaseException as error:
            error.add_note(f"{kind}, seed {SEED}, cut {cut} before event {event}: {recording.events[event]}")
            raise


@pytest.mark.parametrize("kind", CUTS)
def test_without_synchronizing_it_does_not(kind: str, tmp_path: Path) -> None:
    recording = _recorded(kind, tmp_path, "unsafe")
    random = Random(SEED)
    for cut, (event, disk) in enumerate(recording.states_at(_moments(kind, recording, random))):
        try:
            _cut(kind, recording.said(event), disk, tmp_path / f"cut-{cut}", tmp_path / "documents", random)
        except (AssertionError, VectorizeError):
            return
    pytest.fail("the disk lost nothing, so that nothing is shown")


@pytest.mark.parametrize("kind", ["files", "requests"])
def test_what_a_killed_run_wrote_is_on_the_disk_before_another_one_acknowledges_it(kind: str, tmp_path: Path) -> None:
    recording = _recorded(f"killed-{kind}", tmp_path)
    [killed] = recording.saying("killed")
    # Maintenance, which flushes what it has compacted, comes after the last batch.
    acknowledged = max(each for each in recording.saying(_ACKNOWLEDGED[kind]) if each > killed)
    random = Random(SEED)
    moments = [acknowledged + 1] * CUTS_AFTER_A_KILL
    for cut, (event, disk) in enumerate(recording.states_at(moments)):
        home = tmp_path / f"cut-{cut}"
        _cut(f"killed-{kind}", recording.said(event), disk, home, tmp_path / "documents", random)


def _recorded(kind: str, tmp_path: Path, *further: str) -> Recording:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "tests.attacks.power_loss_work", kind, str(home), str(tmp_path / "documents")]
    return lossy_disk.record([*command, *further], home, {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def _begin(recording: Recording) -> int:
    """Imports take most of the calls."""
    home = str(recording.folder).encode().hex()
    return next(
        number
        for number, event in enumerate(recording.events)
        if home in "".join(event.arguments).replace("\\x", "") and event.name == "mkdir"
    )


def _moments(kind: str, recording: Recording, random: Random) -> list[int]:
    begin = _begin(recording)
    return [random.randrange(begin, len(recording.events)) for _ in range(CUTS[kind])]


def _cut(kind: str, said: list[str], disk: Disk, home: Path, documents: Path, random: Random) -> None:
    disk.write(home, random)
    _start_again(home)
    settings = power_loss_work.installed(home)
    store = power_loss_work.opened(settings)
    try:
        _CHECKS[kind](settings, store, said, documents)
        assert not store.damaged()
    finally:
        store.close()


def _start_again(home: Path) -> None:
    """This is another run of the system, though it is the same for whoever asks it."""
    folder = home / "lancedb" / FOLDER
    if folder.is_dir():
        marks = Marks(home / "lancedb")
        for file in folder.iterdir():
            mark = marks.read(file.name)
            if mark is not None:
                marks.update(file.name, partial(_of_before, mark))


def _of_before(mark: Mark, _: Mark | None) -> Mark:
    return replace(mark, system="the one before")


def _check_files(settings: Settings, store: LanceDBStore, said: list[str], folder: Path) -> None:
    work = power_loss_work
    step = sum(line.startswith("step ") for line in said) - 1
    if step < 0:
        return
    texts = {content_hash(text): text.splitlines() for n in range(work.STEPS) for text in work.documents(n).values()}
    try:
        found = work.passages(store)
    except CollectionNotFoundError:
        found = {}
    for name, entry in work.manifest(settings).items():
        assert found.get(name) == texts[entry.content_hash], f"the manifest says that {name} is done"
    work.lay_out(folder, step)
    work.ingest(settings, store, folder)
    assert work.passages(store) == {name: text.splitlines() for name, text in work.documents(step).items()}
    assert work.ingest(settings, store, folder) == 0
    assert not store.is_doubtful(work.COLLECTION)


def _check_requests(settings: Settings, store: LanceDBStore, said: list[str], _: Path) -> None:
    work = power_loss_work
    history = work.messages()
    offset = max((int(line.split()[1]) for line in said if line.startswith("offset ")), default=0)
    under_way = {each.task_id for each in history[offset:]}
    try:
        found = work.texts(store)
    except CollectionNotFoundError:
        found = {}
    acknowledged = work.expected(history[:offset])
    assert _without(found, under_way) == _without(acknowledged, under_way)
    # The topic is compacted meanwhile: of each task the newest message is left.
    newest = {each.task_id: each.number for each in history}
    work.drain(settings, store, [each for each in history[offset:] if newest[each.task_id] == each.number])
    assert work.texts(store) == work.expected(history)
    work.drain(settings, store, history)  # a replay brings nothing back
    assert work.texts(store) == work.expected(history)


def _without(found: dict[str, list[str]], names: set[str]) -> dict[str, list[str]]:
    return {name: rows for name, rows in found.items() if name not in names}


def _check_collections(_: Settings, store: LanceDBStore, said: list[str], __: Path) -> None:
    work = power_loss_work
    turned = max((int(line.split()[1]) for line in said if line.startswith("turned ")), default=0)
    filled = max((int(line.split()[1]) for line in said if line.startswith("filled ")), default=0)
    there = {each.physical for each in store.collections()}
    rows = sorted(many(work.ROWS, DIMENSION)["id"].to_pylist())
    for line in said:
        if line.startswith("dropped "):
            assert work.physical(int(line.split()[1])) not in there
    if turned:
        assert store.collection(work.COLLECTION).physical in {work.physical(turned), work.physical(filled)}
        assert work.ids(store) == rows
    for edition in range(max(turned, 1), work.EDITIONS + 1):
        work.turn(store, edition)
    assert [each.physical for each in store.collections()] == [work.physical(work.EDITIONS)]
    assert work.ids(store) == rows


def _check_killed_files(settings: Settings, store: LanceDBStore, _: list[str], folder: Path) -> None:
    work = power_loss_work
    now = {file.name: file.read_text() for file in folder.iterdir()}
    assert work.passages(store) == {name: text.splitlines() for name, text in now.items()}
    assert {name: entry.content_hash for name, entry in work.manifest(settings).items()} == {
        name: content_hash(text) for name, text in now.items()
    }


def _check_killed_requests(_: Settings, store: LanceDBStore, said: list[str], __: Path) -> None:
    work = power_loss_work
    assert f"offset {work.BEFORE + 1}" in said
    assert work.texts(store) == work.expected(work.again())


_CHECKS: dict[str, Callable[[Settings, LanceDBStore, list[str], Path], None]] = {
    "files": _check_files,
    "requests": _check_requests,
    "collections": _check_collections,
    "killed-files": _check_killed_files,
    "killed-requests": _check_killed_requests,
}
