"""The request ledger, on SQLite and on PostgreSQL."""

import itertools
import multiprocessing
import re
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic_core import to_json

from tests.servers.postgresql import Server
from tests.state.plans import plan_of
from tests.state.rows import START, VERSIONS, MakeSettings, row
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError, SettingsError
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.database import database_url
from vectorize_pipelines.state.ledger import LISTED_METADATA_CHARACTERS, InvalidCursorError, RequestLedger
from vectorize_pipelines.state.request_rows import METADATA_BYTES, MOST_PROGRESS, RequestRow

STATES = st.sampled_from(RequestState)
#: Types of requests; None of rows of earlier versions.
KINDS = st.sampled_from([None, "text_vectorization", "batch_vectorization"])


@pytest.fixture
def ledger(installation: Settings) -> Iterator[RequestLedger]:
    opened = RequestLedger.open(installation)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "time",
    [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(9999, 12, 31, 23, 59, 59, 1, UTC), START],
)
def test_a_row_comes_back_as_it_was_noted(ledger: RequestLedger, time: datetime) -> None:
    full = RequestRow(
        request_id="dienst/α 🚢 'quoted\" %s ?",
        state=RequestState.FAILED,
        modality=Modality.DOCUMENT,
        collection="texts",
        submitted_at=time,
        started_at=time,
        finished_at=time,
        run_id="run",
        topic="vectorize.document.priority",
        partition=5,
        offset=2**62,
        timestamp_ms=2**50,
        items=2**40,
        vectors=3,
        tokens=4,
        error_class="CorruptDocumentError",
        error_message="cannot be read; replace it",
        task_type="document_vectorization",
        done=2**41,
        known=2**42,
        truncated=2**43,
        warnings=({"kind": "omitted", "what": "a page 🚢", "remedy": "read it"},),
        metadata={"α 🚢": [1, -0.5, None, True, {"deep": "\x00 ' \" \\ %s"}], "large": 2**62},
    )
    least = row("least", RequestState.PENDING, run_id=None)
    ledger.record([full, least])
    assert ledger.get(full.request_id) == full
    assert ledger.get("least") == least
    assert ledger.get("other") is None


def test_a_message_of_an_error_is_stored_whatever_it_holds(ledger: RequestLedger) -> None:
    ledger.record([replace(row(state=RequestState.FAILED), error_message="a\x00b\ud800c" + "d" * 10_000)])
    found = ledger.get("one")
    assert found is not None
    assert found.error_message is not None
    assert found.error_message.startswith("a\N{REPLACEMENT CHARACTER}b?cd")
    assert len(found.error_message) == 2000


@pytest.mark.parametrize(("size", "kept"), [(METADATA_BYTES, True), (METADATA_BYTES + 1, False)])
def test_metadata_are_kept_up_to_a_size(ledger: RequestLedger, size: int, kept: bool) -> None:
    metadata = {"a": "ü" * ((size - len('{"a":""}')) // 2) + "x" * (size % 2)}
    assert len(to_json(metadata)) == size
    ledger.record([replace(row("large"), metadata=metadata), replace(row("none"), metadata={})])
    large, none = ledger.get("large"), ledger.get("none")
    assert large is not None
    assert none is not None
    assert large.metadata == (metadata if kept else None)
    assert none.metadata == {}


def test_pages_leave_large_metadata_out(ledger: RequestLedger) -> None:
    fits = {"a": "ü" * (LISTED_METADATA_CHARACTERS - len('{"a":""}'))}
    larger = {"a": fits["a"] + "ü"}
    ledger.record([replace(row("fits"), metadata=fits), replace(row("larger"), metadata=larger), row("unknown")])
    assert {each.request_id: each.metadata for each in ledger.page().rows} == {
        "fits": fits,
        "larger": None,
        "unknown": None,
    }
    found = ledger.get("larger")
    assert found is not None
    assert found.metadata == larger


@pytest.mark.parametrize(
    ("state", "done", "known", "progress"),
    [
        (RequestState.PENDING, 5, 10, 0.0),
        (RequestState.PROCESSING, 0, 0, 0.0),
        (RequestState.PROCESSING, 0, 10, 0.0),
        (RequestState.PROCESSING, 5, 10, 0.5),
        (RequestState.PROCESSING, 10, 10, MOST_PROGRESS),
        (RequestState.COMPLETED, 0, 0, 1.0),
        (RequestState.FAILED, 5, 10, 1.0),
        (RequestState.CANCELLED, 0, 10, 1.0),
    ],
)
def test_progress(state: RequestState, done: int, known: int, progress: float) -> None:
    noted = replace(row(state=state), done=done, known=known)
    assert noted.progress == progress
    assert noted.as_dict()["progress"] == progress


def test_a_time_without_zone_is_refused(ledger: RequestLedger) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        ledger.record([replace(row(), submitted_at=datetime(2026, 1, 1))])


def test_nothing_of_a_call_is_noted_where_one_row_cannot_be(ledger: RequestLedger) -> None:
    with pytest.raises(LedgerError):
        ledger.record([row("good"), row("bad", offset=2**63)])
    assert ledger.get("good") is None


def test_an_id_that_no_request_has(ledger: RequestLedger) -> None:
    """A message that is no request may name itself as it likes."""
    ledger.record([row("half \ud800\x00")])
    assert ledger.get("half \ud800\x00") is not None
    assert ledger.get("half") is None


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.tuples(VERSIONS, STATES), min_size=1, max_size=8),
    cuts=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_any_order_of_calls_ends_in_the_newest_version(
    ledger: RequestLedger,
    history: list[tuple[tuple[int, str, int, int], RequestState]],
    cuts: list[bool],
) -> None:
    """Whether rows are noted one by one or together; no state is taken back by one that comes before it."""
    request_id = str(uuid.uuid4())  # a new one for each example
    calls: list[list[RequestRow]] = [[]]
    for index, ((timestamp_ms, topic, partition, offset), state) in enumerate(history):
        noted = replace(
            row(request_id, state, timestamp_ms=timestamp_ms, offset=offset, run_id=str(index)),
            topic=topic,
            partition=partition,
        )
        calls[-1].append(noted)
        if cuts[index]:
            calls.append([])
    for call in calls:
        ledger.record(call)
    newest = max(version for version, _ in history)
    of_newest = [(index, state) for index, (version, state) in enumerate(history) if version == newest]
    final = [each for each in of_newest if each[1].is_final]
    begun = [each for each in of_newest if each[1] is not RequestState.PENDING]
    index, state = (final or begun or of_newest)[-1]
    found = ledger.get(request_id)
    assert found is not None
    assert (found.version, found.state, found.run_id) == (newest, state, str(index))


def _record_many(settings: Settings, turn: int, barrier: object) -> None:
    ledger = RequestLedger.open(settings)
    barrier.wait()  # type: ignore[attr-defined]
    for start in range(0, 2000, 100):
        ledger.record([row(f"{n}", offset=2 * n + turn, run_id=str(turn)) for n in range(start, start + 100)])
    ledger.close()


def test_two_processes_note_the_same_requests_at_the_same_time(installation: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_record_many, args=(installation, turn, barrier)) for turn in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    ledger = RequestLedger.open(installation)
    found = ledger.page(limit=3000).rows
    assert len(found) == 2000
    assert {(each.state, each.run_id) for each in found} == {(RequestState.COMPLETED, "1")}


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at_first=st.lists(st.tuples(STATES, st.integers(0, 5), KINDS), max_size=30),
    later=st.lists(st.tuples(STATES, st.integers(0, 9), KINDS), max_size=10),
    limit=st.integers(1, 7),
    states=st.sets(STATES),
    kind=KINDS,
)
def test_pages_miss_and_repeat_nothing_while_rows_are_added(
    new_installation: MakeSettings,
    at_first: list[tuple[RequestState, int, str | None]],
    later: list[tuple[RequestState, int, str | None]],
    limit: int,
    states: set[RequestState],
    kind: str | None,
) -> None:
    def named(name: str, noted: list[tuple[RequestState, int, str | None]]) -> list[RequestRow]:
        return [
            replace(row(f"{name} {n}", state, submitted=time), task_type=task_type)
            for n, (state, time, task_type) in enumerate(noted)
        ]

    def counts(each: RequestRow) -> bool:
        return (not states or each.state in states) and (kind is None or each.task_type == kind)

    ledger = RequestLedger.open(new_installation())
    before, meanwhile = named("first", at_first), named("later", later)
    ledger.record(before)
    in_order = sorted(filter(counts, before), key=lambda each: (each.submitted_at, each.request_id), reverse=True)
    for skip in range(0, len(in_order) + 2, limit):
        page = ledger.page(states, limit, task_type=kind, skip=skip)
        assert list(page.rows) == in_order[skip : skip + limit]
        assert (page.next is None) is (skip + limit >= len(in_order))
    seen: list[RequestRow] = []
    after: str | None = None
    added = iter(meanwhile)
    while True:
        page = ledger.page(states, limit, after, task_type=kind)
        assert len(page.rows) <= limit
        seen += page.rows
        ledger.record(list(itertools.islice(added, 2)))
        if page.next is None:
            break
        after = page.next
    ledger.close()
    places = [(each.submitted_at, each.request_id) for each in seen]
    assert places == sorted(set(places), reverse=True)
    assert {each.request_id for each in in_order} <= {each.request_id for each in seen}
    assert all(map(counts, seen))


@pytest.mark.parametrize("kind", [None, "batch_vectorization"], ids=["all types", "one type"])
@pytest.mark.parametrize("states", [[], [RequestState.FAILED]], ids=["all states", "one state"])
def test_a_page_takes_from_the_indexes_no_more_than_it_has(
    installation: Settings, ledger: RequestLedger, states: list[RequestState], kind: str | None
) -> None:
    """However many rows there are: no table is read through, and nothing is sorted but what was taken."""
    noted = [replace(row(f"t{n}", RequestState.FAILED, submitted=n), task_type=kind) for n in range(30)]
    ledger.record(noted)
    first = ledger.page(states, 10, task_type=kind)
    plan = plan_of(installation, lambda: ledger.page(states, 10, first.next, task_type=kind))
    index = "vectorize_requests_by_state" if kind is None else "vectorize_requests_by_task_type"
    parts = len(states) or len(RequestState)
    if database_url(installation).get_backend_name() == "sqlite":
        assert plan.count(f"USING COVERING INDEX {index} (") == parts, plan
        assert "SCAN vectorize_requests" not in plan, plan
    else:
        assert len(re.findall(rf"Index Only Scan Backward using {index} ", plan)) == parts, plan
        assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("cursor", ["", "x", "bm9uc2Vuc2U", "W10", "WzEsMl0", "é", "WyJhIiwgImIiXQ", "WzFlNDAsICJhIl0"])
def test_a_cursor_that_is_none(ledger: RequestLedger, cursor: str) -> None:
    with pytest.raises(InvalidCursorError, match="give the `next` of an earlier page"):
        ledger.page(after=cursor)


def test_what_has_changed_meanwhile_does_not_fail(ledger: RequestLedger) -> None:
    """Between the look at the rows and the note."""
    seen = [row(name, RequestState.PENDING, run_id=None) for name in ("waits", "taken up", "done", "sent again")]
    ledger.record([*seen, row("\ud800", RequestState.PENDING)])
    changed = [
        row("taken up", RequestState.PROCESSING),
        row("done", finished=1),
        row("sent again", RequestState.PENDING, offset=1, run_id=None),
    ]
    ledger.record(changed)
    now = START + timedelta(days=1)
    assert ledger.fail([*seen, row("\ud800", RequestState.PENDING)], LedgerError("a reason\x00"), now) == 2
    for each in changed:
        assert ledger.get(each.request_id) == each
    failed = replace(
        seen[0],
        state=RequestState.FAILED,
        finished_at=now,
        error_class="LedgerError",
        error_message="a reason\N{REPLACEMENT CHARACTER}",
    )
    assert ledger.get("waits") == failed


def test_purge_forgets_what_was_finished_long_ago(ledger: RequestLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectorize_pipelines.state.database.PURGE_ROWS", 3)  # several transactions
    old = [row(f"old {n}", submitted=n, finished=n) for n in range(10)]
    kept = [
        row("waits", RequestState.PENDING, submitted=0),
        row("recent", submitted=0, finished=100),
        row("on the second", submitted=0, finished=50),
    ]
    ledger.record(old + kept)
    assert ledger.purge(START + timedelta(seconds=50)) == 10
    assert {each.request_id for each in ledger.page().rows} == {each.request_id for each in kept}
    assert ledger.purge(START + timedelta(seconds=50)) == 0


def test_where_dagster_has_no_other_database_the_ledger_is_a_file_beside_its_own(tmp_path: Path) -> None:
    RequestLedger.open(load_settings(home=tmp_path)).close()
    assert (tmp_path / "dagster" / "history" / "vectorize.db").exists()


def _dagster_yaml(home: Path, content: str) -> Settings:
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(content)
    return load_settings(home=home)


def test_the_database_is_that_of_dagster_yaml(
    tmp_path: Path, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PG_PASSWORD", postgresql.password)
    monkeypatch.setenv("PG_URL", postgresql.url())
    parts = f"username: vectorize, password: {{env: PG_PASSWORD}}, hostname: 127.0.0.1, port: {postgresql.port}"
    by_parts = _dagster_yaml(tmp_path / "a", f"storage: {{postgres: {{postgres_db: {{{parts}, db_name: postgres}}}}}}")
    by_url = _dagster_yaml(tmp_path / "b", "storage: {postgres: {postgres_url: {env: PG_URL}}}")
    one, other = RequestLedger.open(by_parts), RequestLedger.open(by_url)
    one.record([row("of one", RequestState.PENDING)])
    assert other.get("of one") == row("of one", RequestState.PENDING)
    one.close()
    other.close()


def test_a_folder_of_dagsters_own(tmp_path: Path) -> None:
    RequestLedger.open(_dagster_yaml(tmp_path / "h", f"storage: {{sqlite: {{base_dir: {tmp_path / 'elsewhere'}}}}}"))
    assert (tmp_path / "elsewhere" / "history" / "vectorize.db").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("storage: {mysql: {mysql_url: 'mysql://x'}}", "cannot hold the ledger"),
        ("storage: {postgres: {postgres_url: {env: NOT_THERE}}}", "NOT_THERE, which is not set"),
        ("storage: {postgres: {postgres_url: 's3cret no address'}}", "is no database address"),
        ("storage: [", "cannot be read as YAML"),
    ],
)
def test_a_dagster_yaml_that_leads_nowhere(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        RequestLedger.open(_dagster_yaml(tmp_path / "h", content))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3cret", "mysql://u:s3cret@h/d", "sqlite://", "postgresql://u:s3cret@h:port/d"])
def test_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="VECTORIZE_LEDGER__URL") as caught:
        RequestLedger.open(load_settings(home=tmp_path, ledger={"url": url}))
    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_away_is_named_without_the_password(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, ledger={"url": "postgresql://u:s3cret@127.0.0.1:1/d"})
    with pytest.raises(LedgerError, match=r"127\.0\.0\.1") as caught:
        RequestLedger.open(settings)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_was_restarted_is_found_again(own_postgresql: Server, tmp_path: Path) -> None:
    ledger = RequestLedger.open(load_settings(home=tmp_path, ledger={"url": own_postgresql.url()}))
    ledger.record([row()])
    own_postgresql.stop()
    with pytest.raises(LedgerError):
        ledger.get("one")
    own_postgresql.start()
    assert ledger.get("one") is not None
    ledger.close()


def test_a_file_that_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(LedgerError, match=f"{file}.*not a database"):
        RequestLedger.open(load_settings(home=tmp_path, ledger={"url": f"sqlite:///{file}"}))


def test_a_writer_waits_for_another_one(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    ledger = RequestLedger.open(settings)
    file = tmp_path / "dagster" / "history" / "vectorize.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("begin immediate")
    code = "import sys; from tests.state.processes import note; note(sys.argv[1])"
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"noting\n"
    assert ledger.get("noted") is None, "readers do not wait"
    assert writer.poll() is None
    other.execute("commit")
    assert writer.wait(60) == 0
    assert ledger.get("noted") is not None
    ledger.close()
