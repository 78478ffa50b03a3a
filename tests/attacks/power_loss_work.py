"""Work whose power is cut: `python -m tests.attacks.power_loss_work FOLDER NAME…`, each in `FOLDER/NAME`.

A name is that of a kind of work; with `-unsafe` behind it, that synchronizes nothing, to see that the test notices. On
standard output each says that it begins, and what it has acknowledged.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tests.pipeline.requests.installation import DIMENSION, HashEncoder, stored_rows
from vectorize_pipelines.core.days import Days
from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.files.reader import Reading
from vectorize_pipelines.pipeline.requests.context import RunContext
from vectorize_pipelines.pipeline.requests.pending import InvalidMessage, PendingRequest
from vectorize_pipelines.pipeline.requests.report import Report
from vectorize_pipelines.pipeline.requests.stream import RequestStream
from vectorize_pipelines.pipeline.spill import configured_outage
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.sources.files import FileSource, SourceFile
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores.base import VectorStore, physical_name
from vectorize_pipelines.stores.conformance.records import many
from vectorize_pipelines.stores.lancedb import maintenance as lancedb_maintenance
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.maintenance import Maintenance
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

COLLECTION = "articles"
STEPS = 4
EDITIONS = 4
ROWS = 40
TOPIC = "requests"
MESSAGES = 120
#: Old versions go as soon as the table is compacted: the moment at which there is nothing to fall back to.
NO_RETENTION = timedelta(0)
_TIME = datetime(2024, 3, 1, 12, tzinfo=UTC)
_SMALL = Maintenance(fragments=3, rows_per_fragment=10**9, scalar_index_rows=20, vector_index_rows=10**9)


_recorded = False


def say(line: str) -> None:
    """One call of the system, so that its place among the others is known."""
    if _recorded:
        os.write(1, f"{line}\n".encode())


def installed(home: Path) -> Settings:
    """The settings of an installation."""
    return load_settings(
        {},
        home=home,
        models={"dimension": DIMENSION},
        cache={"enabled": "off"},
        corpus={"collection": COLLECTION},
    )


def opened(settings: Settings) -> LanceDBStore:
    """A store that compacts at every occasion."""
    directory = settings.home / "lancedb"
    return LanceDBStore(Location.folder(directory), maintenance=_SMALL)


def spec() -> EncoderSpec:
    return describe_model(DEFAULT_TEXT_MODEL, dimension=DIMENSION)


@contextmanager
def lease(model: str, dimension: int | None = DIMENSION) -> Iterator[Encoder]:
    yield HashEncoder(describe_model(model, dimension=dimension))


# ---- files


def documents(step: int) -> dict[str, str]:
    """What lies in the folder in a step: of each document a line for each passage."""
    random = Random(4)
    found = {f"{n}.txt": _lines(n, 0, 1 + n % 4) for n in range(24)}
    for each in range(1, step + 1):
        for name in random.sample(sorted(found), 7):  # as many passages as before, so that nobody can count
            found[name] = _lines(int(name[:-4]), each, found[name].count("\n"))
        for name in random.sample(sorted(found), 3):
            del found[name]
        found |= {f"{each}{n:02}.txt": _lines(100 * each + n, each, 2) for n in range(3)}
    return found


def _lines(number: int, step: int, passages: int) -> str:
    return "".join(f"passage {n} of document {number} as of step {step}\n" for n in range(passages))


def lay_out(folder: Path, step: int) -> None:
    """Makes the folder what it is in a step. It lies on a disk that loses nothing."""
    folder.mkdir(exist_ok=True)
    wanted = documents(step)
    for file in folder.iterdir():
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        file = folder / name
        file.write_text(text)
        at = (_TIME + timedelta(hours=int(text.split(" as of step ")[1][0]))).timestamp()
        os.utime(file, (at, at))


@dataclass
class LineReader:
    """Each line of a text file is a passage."""

    spec: EncoderSpec
    model: str
    fingerprint: str = "lines"
    equivalent_fingerprints: frozenset[str] = frozenset()
    limits: str = ""
    may_refuse: bool = False

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        for file, known in files:
            text = Path(file.source_id).read_text()
            hash_ = content_hash(text)
            items = [
                Item(file.source_id, n, Modality.TEXT, line, None, content_hash(line), file.occurred_at)
                for n, line in enumerate(text.splitlines())
            ]
            yield file, Reading(hash_, None if hash_ == known else items)

    def close(self) -> None: ...

    def __enter__(self) -> "LineReader":
        return self

    def __exit__(self, *_: object) -> None: ...


def ingest(settings: Settings, store: VectorStore, folder: Path) -> int:
    """A drain run over the folder; gives how many batches it wrote."""
    today = datetime.now(UTC).date()
    request = FolderRequest(COLLECTION, DEFAULT_TEXT_MODEL, "drain", (today, today), "run")
    source = FileSource(str(folder), (".txt",), settings.corpus.include, settings.corpus.exclude)
    reader = LineReader(spec(), spec().fingerprint)
    with open_folder(settings, request, source, reader, store, lease) as stream:
        batches = 0
        for _ in written(DirectWriter(settings, store), stream):
            batches += 1
            say("acknowledged")
        stream.reported()
    return batches


def manifest(settings: Settings) -> dict[str, Any]:
    """What the manifest says to be done, by name of file."""
    with closing(open_manifest(settings, COLLECTION)) as opened_manifest:
        return {Path(entry.source_id).name: entry for entry in opened_manifest.entries() if not entry.is_in_doubt}


def passages(store: VectorStore) -> dict[str, list[str]]:
    """The passages of each file in the store, each with its own vector."""
    found: dict[str, list[str]] = {}
    for (source_id, _), row in sorted(stored_rows(store, COLLECTION).items()):
        found.setdefault(Path(source_id).name, []).append(row["text"])
    return found


def _files(settings: Settings, folder: Path) -> None:
    store = opened(settings)
    for step in range(STEPS):
        lay_out(folder, step)
        say(f"step {step}")
        ingest(settings, store, folder)
    store.close()


# ---- requests


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a topic: a batch of texts, or a deletion."""

    number: int
    task_id: str
    texts: Sequence[str] | None

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.number

    def key(self) -> bytes | None:
        return self.task_id.encode()

    def value(self) -> bytes | None:
        if self.texts is None:
            return None
        body = {"task_id": self.task_id, "task_type": "batch_vectorization", "data": self.texts}
        return json.dumps({**body, "collection": COLLECTION}).encode()

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, int(_TIME.timestamp() * 1000) + self.number


def messages() -> list[Message]:
    """A topic in which the same tasks come again, with more texts, fewer, or none."""
    random = Random(5)
    found: list[Message] = []
    for number in range(MESSAGES):
        task_id = f"task-{random.randrange(40)}"
        texts = [f"text {n} of message {number}" for n in range(random.randint(1, 4))]
        found.append(Message(number, task_id, None if random.random() < 0.2 else texts))
    return found


def expected(history: Iterable[Message]) -> dict[str, list[str]]:
    """The texts of each task after these messages."""
    newest: Mapping[str, Message] = {each.task_id: each for each in history}
    return {name: list(each.texts) for name, each in newest.items() if each.texts is not None}


class ListSource(MessageSource):
    """Gives messages some at a time."""

    def __init__(self, history: Sequence[ReceivedMessage]):
        self._left = list(history)

    def poll(self, most: int) -> Polled:
        given, self._left = self._left[: min(most, 6)], self._left[6:] if most >= 6 else self._left[most:]
        return Polled(given, {(TOPIC, 0): given[-1].offset() + 1} if given else {})

    def at_end(self) -> bool:
        return not self._left

    def lag(self) -> int:
        return len(self._left)

    def close(self) -> None: ...


@dataclass
class Offsets(Report):
    """Says what a transaction would commit: the broker is another machine."""

    committed: int = field(default=0, init=False)

    def __init__(self, ledger: RequestLedger):
        super().__init__(ledger, Modality.TEXT, "run", None)

    def finished(
        self,
        requests: Sequence[PendingRequest],
        invalid: Sequence[InvalidMessage],
        positions: Mapping[PartitionId, int],
    ) -> None:
        super().finished(requests, invalid, positions)
        if positions:
            say(f"offset {positions[TOPIC, 0]}")


def drain(settings: Settings, store: VectorStore, history: Sequence[Message]) -> None:
    """A run over these messages."""
    with ExitStack() as resources, closing(RequestLedger.open(settings)) as ledger:
        versions = SourceVersions.open(settings)
        resources.callback(versions.close)
        days = Days(settings.partitions.start, datetime.now(UTC).date())
        outage = configured_outage(settings)
        context = RunContext(settings, Modality.TEXT, "run", store, versions, lease, outage)
        stop_policy = StopPolicy(0, inf, datetime.max.replace(tzinfo=UTC))
        source, report = ListSource(history), Offsets(ledger)
        stream = RequestStream(context, source, report, stop_policy, lambda: days, resources.pop_all())
        with stream:
            for _ in written(DirectWriter(settings, store), stream):
                pass


def texts(store: VectorStore) -> dict[str, list[str]]:
    """The texts of each task in the store."""
    found: dict[str, list[str]] = {}
    for (source_id, _), row in sorted(stored_rows(store, COLLECTION).items()):
        found.setdefault(source_id, []).append(row["text"])
    return found


def _requests(settings: Settings, _: Path) -> None:
    store = opened(settings)
    drain(settings, store, messages())
    store.close()


# ---- killed before the flush

#: Of the history: what comes before the message whose run is killed.
BEFORE = 30


def _apart(run: Callable[[], None]) -> int:
    """Runs in a process of its own, made before LanceDB has any threads; returns how that ended."""
    child = os.fork()
    if not child:
        ending = 1
        try:
            run()
            ending = 0
        except BaseException:  # noqa: BLE001 (the parent sees how it ended)
            traceback.print_exc()
        finally:
            os._exit(ending)
    return os.waitpid(child, 0)[1]


def _killed_instead_of_flushing(run: Callable[[LanceDBStore], object], settings: Settings) -> None:
    store = opened(settings)

    def killed(names: Sequence[str] = ()) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    store.flush = killed  # type: ignore[method-assign]
    run(store)


def _thrice(
    settings: Settings, before: Callable[[LanceDBStore], object], run: Callable[[LanceDBStore], object]
) -> None:
    """A run to start from; another one, killed once its batch was upserted; and the same one again."""

    def first() -> None:
        with closing(opened(settings)) as store:
            before(store)

    assert _apart(first) == 0
    assert _apart(lambda: _killed_instead_of_flushing(run, settings)) == signal.SIGKILL
    say("killed")
    with closing(opened(settings)) as store:
        run(store)


def _change(folder: Path) -> None:
    """Changes two documents, which keep their numbers of passages."""
    for number in (1, 3):
        file = folder / f"{number}.txt"
        file.write_text(file.read_text().replace("step 0", "step 9"))


def _killed_files(settings: Settings, folder: Path) -> None:
    lay_out(folder, 0)

    def before(store: LanceDBStore) -> None:
        ingest(settings, store, folder)
        _change(folder)

    _thrice(settings, before, lambda store: ingest(settings, store, folder))


def _killed_requests(settings: Settings, _: Path) -> None:
    history = again()
    _thrice(
        settings,
        lambda store: drain(settings, store, history[:BEFORE]),
        lambda store: drain(settings, store, history[BEFORE:]),
    )


def again() -> list[Message]:
    """A topic whose last message has other texts for a task, as many as before."""
    history = messages()[:BEFORE]
    of = next(each for each in reversed(history) if each.texts is not None)
    return [*history, Message(BEFORE, of.task_id, [f"other text {n}" for n, _ in enumerate(of.texts or ())])]


# ---- collections


def physical(edition: int) -> str:
    return physical_name(COLLECTION, spec(), edition)


def ids(store: VectorStore) -> list[str]:
    """Of the rows that the alias shows."""
    return sorted(id_ for batch in store.scan(COLLECTION, ("id",)) for id_ in batch.column("id").to_pylist())


def turn(store: VectorStore, edition: int) -> None:
    """Makes the next edition of a collection, turns the alias to it and drops the one before."""
    store.ensure_collection(COLLECTION, spec(), aliased=edition == 1, edition=edition)
    rows = many(ROWS, DIMENSION)
    for start in range(0, ROWS, 10):
        store.upsert(physical(edition), rows.slice(start, 10))
    store.maintain(physical(edition))
    store.flush()
    say(f"filled {edition}")
    store.set_alias(COLLECTION, physical(edition))
    say(f"turned {edition}")
    if edition > 1 and physical(edition - 1) in {each.physical for each in store.collections()}:
        store.drop(physical(edition - 1))
        say(f"dropped {edition - 1}")


def _collections(settings: Settings, _: Path) -> None:
    store = opened(settings)
    for edition in range(1, EDITIONS + 1):
        turn(store, edition)
    store.close()


UNSAFE = "-unsafe"
WORK = {
    "files": _files,
    "requests": _requests,
    "collections": _collections,
    "killed-files": _killed_files,
    "killed-requests": _killed_requests,
}


def _synchronize_nothing() -> None:
    for name in ("fsync", "fdatasync"):
        setattr(os, name, lambda _: None)
    from vectorize_pipelines.stores.lancedb import durability as lancedb_durability

    setattr(lancedb_durability, "sync_file_system", lambda _: True)  # noqa: B010 (mypy would ask for an export)


def _work(name: str, folder: Path) -> None:
    kind = name.removesuffix(UNSAFE)
    if kind != name:
        _synchronize_nothing()
    WORK[kind](installed(folder / "home"), folder / "documents")


def main() -> None:
    """Does one work after the other, each in a process of its own."""
    global _recorded
    _recorded = True
    lancedb_maintenance.RETENTION = NO_RETENTION
    # What takes most of the import of lancedb, which each process does itself: it has a thread.
    for module in ("adlfs", "lance_namespace", "pyarrow.dataset"):
        importlib.import_module(module)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        say(f"begin {name}")
        if _apart(partial(_work, name, folder / name)):
            sys.exit(f"{name} failed")


if __name__ == "__main__":
    main()
