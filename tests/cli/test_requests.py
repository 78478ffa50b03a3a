"""`vectorize status` and `vectorize requests`."""

from dataclasses import replace
from pathlib import Path

from tests.commands import Vectorize
from tests.state.rows import row
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.messaging.callbacks import callback_row
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.callbacks import CallbackOutbox
from vectorize_pipelines.state.ledger import RequestLedger


def _record(home: Path) -> None:
    settings = load_settings(home=home)
    ledger = RequestLedger.open(settings)
    failed = replace(
        row("bad", RequestState.FAILED, submitted=2, finished=3),
        error_class="CorruptImageError",
        error_message="is cut short",
    )
    good = replace(row("good ü", submitted=1, finished=2), task_type="text_vectorization", metadata={"tenant": "ü"})
    ledger.record([good, failed, row("waits", RequestState.PENDING, submitted=3)])
    ledger.close()
    outbox = CallbackOutbox.open(settings)
    event = ResultEvent("bad", RequestState.FAILED)
    outbox.enqueue([callback_row("http://h/?token=abc", event, Origin("vectorize.text", 1, 0, 0))])
    outbox.close()


def test_what_became_of_a_request(vectorize_here: Vectorize, home: Path) -> None:
    _record(home)
    good = vectorize_here("status", "good ü", "--json").json
    assert good == {
        "task_id": "good ü",
        "status": "completed",
        "progress": 1.0,
        "modality": "text",
        "submitted_at": "2026-03-01T12:00:01+00:00",
        "topic": "vectorize.text",
        "partition": 1,
        "offset": 0,
        "timestamp_ms": 0,
        "collection": "texts",
        "started_at": "2026-03-01T12:00:01+00:00",
        "finished_at": "2026-03-01T12:00:02+00:00",
        "run_id": "run",
        "items": 2,
        "vectors": 3,
        "tokens": 4,
        "error_class": None,
        "error_message": None,
        "task_type": "text_vectorization",
        "done": 0,
        "known": 0,
        "metadata": {"tenant": "ü"},
        "truncated": 0,
        "warnings": [],
        "estimated_seconds": None,
        "callback": None,
    }
    assert '{"tenant": "ü"}' in vectorize_here("status", "good ü").out
    waits = vectorize_here("status", "waits", "--json").json
    assert (waits["progress"], waits["estimated_seconds"]) == (0.0, 1.0)
    bad = vectorize_here("status", "bad")
    assert bad.code == 0
    assert "is cut short" in bad.out
    assert "waiting after 0 attempts" in bad.out
    assert "token=abc" not in bad.out


def test_a_request_that_nobody_knows(vectorize_here: Vectorize) -> None:
    done = vectorize_here("status", "nothing", "--json")
    assert done.code == 8
    assert done.out == ""
    assert "no request 'nothing'" in done.err


def test_requests_are_listed_page_by_page(vectorize_here: Vectorize, home: Path) -> None:
    assert vectorize_here("requests", "--json").json == {"requests": [], "next": None}
    _record(home)
    first = vectorize_here("requests", "--limit", 2, "--json").json
    assert [each["task_id"] for each in first["requests"]] == ["waits", "bad"]
    rest = vectorize_here("requests", "--after", first["next"], "--json").json
    assert [each["task_id"] for each in rest["requests"]] == ["good ü"]
    assert rest["next"] is None
    chosen = vectorize_here("requests", "--status", "failed", "--status", "pending")
    assert chosen.code == 0
    assert [line.split()[0] for line in chosen.out.splitlines()] == ["waits", "bad"]
    assert vectorize_here("requests", "--after", "nonsense").code == 2
    assert vectorize_here("requests", "--status", "lost").code == 2


def test_a_request_that_is_being_processed(vectorize_here: Vectorize, home: Path) -> None:
    ledger = RequestLedger.open(load_settings(home=home))
    noted = replace(row("half", RequestState.PROCESSING), task_type="batch_vectorization", done=30, known=60)
    ledger.record([noted])
    ledger.close()
    assert vectorize_here("status", "half", "--json").json["progress"] == 0.5
    (line,) = vectorize_here("requests").out.splitlines()
    assert line.split()[0] == "half"
    assert "batch_vectorization" in line
    assert line.endswith("50% encoded")
