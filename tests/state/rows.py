"""Rows for tests of the ledger."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.request_rows import RequestRow

MakeSettings = Callable[[], Settings]

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row(
    request_id: str = "one",
    state: RequestState = RequestState.COMPLETED,
    *,
    offset: int = 0,
    timestamp_ms: int = 0,
    submitted: float = 0.0,
    finished: float | None = None,
    run_id: str | None = "run",
    modality: Modality = Modality.TEXT,
) -> RequestRow:
    """A request; `submitted` and `finished` are seconds after `START`."""
    return RequestRow(
        request_id=request_id,
        state=state,
        modality=modality,
        collection="texts",
        submitted_at=START + timedelta(seconds=submitted),
        started_at=START + timedelta(seconds=submitted) if finished is not None else None,
        finished_at=START + timedelta(seconds=finished) if finished is not None else None,
        run_id=run_id,
        topic="vectorize.text",
        partition=1,
        offset=offset,
        timestamp_ms=timestamp_ms,
        items=2,
        vectors=3,
        tokens=4,
    )


#: Few values each, so that equal and neighbouring versions are common.
VERSIONS = st.tuples(
    st.integers(0, 2), st.sampled_from(["a", "a.b", "a-b", "B", "a_b"]), st.integers(0, 1), st.integers(0, 2)
)
