"""Notes in the ledger, many in one transaction: each is written, in its order, and told once, whatever fails."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.state.rows import row
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.gateway.tasks import noting
from vectorize_pipelines.gateway.tasks.noting import PendingNotes
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

ROW = row(state=RequestState.PENDING)


class FailingLedger(RequestLedger):
    """A ledger in memory, of whose calls some fail."""

    def __init__(self, failures: Sequence[bool]):
        self.failures = list(failures)
        self.rows: list[str] = []

    def record(self, rows: Sequence[RequestRow]) -> None:
        if self.failures and self.failures.pop(0):
            raise LedgerError("the database is away")
        self.rows += [each.request_id for each in rows]


@given(chunks=st.lists(st.integers(0, 5), max_size=20), failures=st.lists(st.booleans(), max_size=10))
def test_each_is_written_in_its_order_and_told_once(chunks: list[int], failures: list[bool]) -> None:
    told: list[str] = []
    added: list[str] = []
    ledger = FailingLedger(failures)

    async def note() -> None:
        notes = PendingNotes(ledger)
        for size in chunks:
            for _ in range(size):
                request_id = str(len(added))
                added.append(request_id)
                notes.add([replace(ROW, request_id=request_id)], partial(told.append, request_id))
                assert notes.find(request_id) is not None
            await asyncio.sleep(0)
        await notes.close()
        assert all(notes.find(each) is None for each in added)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noting, "RETRY_SECONDS", 0.0)
        asyncio.run(note())
    assert ledger.rows == added
    assert sorted(told, key=int) == added


def test_nothing_more_is_taken_in_until_the_ledger_is_back() -> None:
    ledger = FailingLedger([True])
    told: list[str] = []

    async def note() -> None:
        notes = PendingNotes(ledger)
        notes.check()
        notes.add([replace(ROW, request_id="one")], lambda: told.append("one"))
        while not told:
            await asyncio.sleep(0.001)
        with pytest.raises(LedgerError, match="is away; nothing was accepted"):
            notes.check()
        # What was under way has been accepted all the same.
        notes.add([replace(ROW, request_id="two")], lambda: told.append("two"))
        assert told == ["one", "two"]
        while not ledger.rows:
            await asyncio.sleep(0.001)
        while notes.find("two") is not None:
            await asyncio.sleep(0.001)
        notes.check()
        await notes.close()

    asyncio.run(note())
    assert ledger.rows == ["one", "two"]


def test_a_defect_leaves_no_request_without_an_answer() -> None:
    class Defective(FailingLedger):
        def record(self, rows: Sequence[RequestRow]) -> None:
            raise RuntimeError("a defect")

    told: list[str] = []

    async def note() -> None:
        notes = PendingNotes(Defective([]))
        notes.add([ROW], lambda: told.append("one"))
        while not told:
            await asyncio.sleep(0.001)
        with pytest.raises(LedgerError, match="its log has the reason"):
            notes.check()
        await notes.close()

    asyncio.run(note())


def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "CLOSING_SECONDS", 0.05)

    async def note() -> None:
        notes = PendingNotes(FailingLedger([True] * 1000))
        notes.add([ROW], lambda: None)
        await notes.close()
        assert notes.find(ROW.request_id) is not None

    asyncio.run(note())
