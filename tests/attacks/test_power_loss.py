"""The power goes at any moment: what was acknowledged is there, and the next run makes the rest what it should be.

Each kind of work is recorded once, and cut at several moments (`lossy_disk`). Of every cut the disk is made as it could
have been then, with or without what nobody had synchronized, and the next runs go on from there, on a machine that has
started again. POWER_LOSS_SEED=… cuts at other moments, POWER_LOSS_TIMES=5 at five times as many.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
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

TIMES = int(os.environ.get("POWER_LOSS_TIMES", "1"))
CUTS = {"files": 8 * TIMES, "requests": 8 * TIMES, "collections": 5 * TIMES}
CUTS_AFTER_A_KILL = 2 * TIMES
ROUNDS_WITHOUT_SYNCHRONIZING = 6
#: How a run says that it has acknowledged a batch.
_ACKNOWLEDGED = {"files": "acknowledged", "requests": "offset "}

pytestmark = pytest.mark.timeout(900)
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


@pytest.fixture(scope="module")
def strace() -> None:
    reason = lossy_disk.is_missing()
    if reason is not None:
        missing(reason)


@pytest.fixture(scope="module")
def recordings(strace: None, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Recording]:
    """Every work, by the name of its folder: recorded together, for the imports take most of the calls."""
    folder = tmp_path_factory.mktemp("recorded")
    names = [*power_loss_work.WORK, *(f"{kind}{power_loss_work.UNSAFE}" for kind in CUTS)]
    for name in names:
        (folder / name / "home").mkdir(parents=True)
    command = [sys.executable, "-m", "tests.attacks.power_loss_work", str(folder), *names]
    whole = lossy_disk.record(command, folder, {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    begun = [*whole.saying("begin "), len(whole.events)]
    return {
        name: whole.part(folder / name / "home", begin, end)
        for name, (begin, end) in zip(names, pairwise(begun), strict=True)
    }


@pytest.mark.parametrize("kind", CUTS)
def test_what_was_acknowledged_outlives_a_loss_of_power(
    kind: str, recordings: Mapping[str, Recording], tmp_path: Path
) -> None:
    recording = recordings[kind]
    random = Random(SEED)
    for cut, (event, disk) in enumerate(recording.states_at(_moments(kind, recording, random))):
        try:
            _cut(kind, recording, event, disk, tmp_path / f"cut-{cut}", random)
        except BaseException as error:
            error.add_note(f"{kind}, seed {SEED}, cut {cut} before event {event}: {recording.events[event]}")
            raise


@pytest.mark.parametrize("kind", CUTS)
def test_without_synchronizing_it_does_not(kind: str, recordings: Mapping[str, Recording], tmp_path: Path) -> None:
    recording = recordings[f"{kind}{power_loss_work.UNSAFE}"]
    # Chance may spare a disk, or take all of it, which is consistent again.
    for seed in range(SEED, SEED + ROUNDS_WITHOUT_SYNCHRONIZING):
        random = Random(seed)
        for cut, (event, disk) in enumerate(recording.states_at(_moments(kind, recording, random))):
            try:
                _cut(kind, recording, event, disk, tmp_path / f"cut-{seed}-{cut}", random)
            except (AssertionError, VectorizeError):
                return
    pytest.fail("the disk lost nothing, so that nothing is shown")


@pytest.mark.parametrize("kind", ["files", "requests"])
def test_what_a_killed_run_wrote_is_on_the_disk_before_another_one_acknowledges_it(
    kind: str, recordings: Mapping[str, Recording], tmp_path: Path
) -> None:
    recording = recordings[f"killed-{kind}"]
    [killed] = recording.saying("killed")
    # Maintenance, which flushes what it has compacted, comes after the last batch.
    acknowledged = max(each for each in recording.saying(_ACKNOWLEDGED[kind]) if each > killed)
    random = Random(SEED)
    moments = [acknowledged + 1] * CUTS_AFTER_A_KILL
    for cut, (event, disk) in enumerate(recording.states_at(moments)):
        _cut(f"killed-{kind}", recording, event, disk, tmp_path / f"cut-{cut}", random)


def _begin(recording: Recording) -> int:
    """Each work imports first."""
    home = str(recording.folder).encode().hex()
    return next(
        number
        for number, event in enumerate(recording.events)
        if home in "".join(event.arguments).replace("\\x", "") and event.name == "mkdir"
    )


def _moments(kind: str, recording: Recording, random: Random) -> list[int]:
    """Spread over all of it."""
    begin, cuts = _begin(recording), CUTS[kind]
    bounds = [begin + (len(recording.events) - begin) * number // cuts for number in range(cuts + 1)]
    return [random.randrange(*each) for each in pairwise(bounds)]


def _cut(kind: str, recording: Recording, event: int, disk: Disk, home: Path, random: Random) -> None:
    disk.write(home, random)
    _start_again(home)
    settings = power_loss_work.installed(home)
    store = power_loss_work.opened(settings)
    try:
        _CHECKS[kind](settings, store, recording.said(event), recording.folder.with_name("documents"))
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
