"""`vectorize status` and `vectorize requests`."""

from dataclasses import replace
from pathlib import Path

from tests.cli.conftest import Vectorize
from tests.ledger.rows import row
from vectorize_pipelines.ledger import RequestLedger
from vectorize_pipelines.messaging.callbacks import CallbackOutbox, CallbackRow
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import load_settings


def _record(home: Path) -> None:
    settings = load_settings(home=home)
    ledger = RequestLedger.open(settings)
    failed = replace(
        row("bad", RequestState.FAILED, submitted=2, finished=3),
        error_class="CorruptImageError",
        error_message="is cut short",
    )
    ledger.record([row("good ü", submitted=1, finished=2), failed, row("waits", RequestState.PENDING, submitted=3)])
    ledger.close()
    outbox = CallbackOutbox.open(settings)
    event = ResultEvent("bad", RequestState.FAILED)
    outbox.enqueue([CallbackRow("http://h/?token=abc", event, Origin("vectorize.text", 1, 0, 0))])
    outbox.close()


def test_what_became_of_a_request(vectorize: Vectorize, home: Path) -> None:
    _record(home)
    good = vectorize("status", "good ü", "--json").json
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
        "estimated_seconds": None,
        "callback": None,
    }
    bad = vectorize("status", "bad")
    assert bad.code == 0
    assert "is cut short" in bad.out
    assert "waiting after 0 attempts" in bad.out
    assert "token=abc" not in bad.out


def test_a_request_that_nobody_knows(vectorize: Vectorize) -> None:
    done = vectorize("status", "nothing", "--json")
    assert done.code == 8
    assert done.out == ""
    assert "no request 'nothing'" in done.err


def test_requests_are_listed_page_by_page(vectorize: Vectorize, home: Path) -> None:
    assert vectorize("requests", "--json").json == {"requests": [], "next": None}
    _record(home)
    first = vectorize("requests", "--limit", 2, "--json").json
    assert [each["task_id"] for each in first["requests"]] == ["waits", "bad"]
    rest = vectorize("requests", "--after", first["next"], "--json").json
    assert [each["task_id"] for each in rest["requests"]] == ["good ü"]
    assert rest["next"] is None
    chosen = vectorize("requests", "--status", "failed", "--status", "pending")
    assert chosen.code == 0
    assert [line.split()[0] for line in chosen.out.splitlines()] == ["waits", "bad"]
    assert vectorize("requests", "--after", "nonsense").code == 2
    assert vectorize("requests", "--status", "lost").code == 2
