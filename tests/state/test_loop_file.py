"""A SQLite file that an event loop works on: beside other processes, lost, damaged, closed, given up."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.state.loop_file import LOGGED, TOGETHER, LoopFile

SCHEMA = "create table if not exists notes (text text not null)"
#: Another process that is in the middle of a transaction until its input ends.
HOLDING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin immediate")
print("held", flush=True)
sys.stdin.read()
connection.execute("insert into notes values ('of another process')")
connection.execute("commit")
"""


class CannotBeUsedError(VectorizeError):
    """What the file of the tests raises."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[LoopFile]:
    """The file, open."""
    notes = LoopFile(file, 1, SCHEMA, "the notes are lost", error=CannotBeUsedError)
    await notes.open()
    try:
        yield notes
    finally:
        await notes.close()


@contextmanager
def held(file: Path) -> Iterator[Callable[[], None]]:
    """Have another process hold the file until what this returns is called; it writes a note then."""
    command = [sys.executable, "-c", HOLDING, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.stdin.close
        finally:
            process.stdin.close()


def note(text: str) -> Callable[[sqlite3.Connection], str]:
    """Return work that writes a note, and returns it."""

    def write(connection: sqlite3.Connection) -> str:
        connection.execute("insert into notes values (?)", (text,))
        return text

    return write


def failing(text: str, error: BaseException) -> Callable[[sqlite3.Connection], str]:
    """Return work that writes a note, and fails."""

    def fail(connection: sqlite3.Connection) -> str:
        note(text)(connection)
        raise error

    return fail


def all_notes(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("select text from notes order by rowid")]


def notes_in(file: Path) -> list[str]:
    """Return what others see in the file."""
    with closing(sqlite3.connect(file)) as connection:
        return all_notes(connection)


async def asked_for(*works: Awaitable[Any]) -> "list[asyncio.Task[Any]]":
    """Begin works, and return them once they are under way, in that order."""
    tasks = [asyncio.ensure_future(work) for work in works]
    await asyncio.sleep(0)
    return tasks


def test_while_another_process_holds_the_file_the_loop_goes_on_and_reads(file: Path) -> None:
    async def go() -> None:
        async with opened(file) as notes, opened(file) as beside:
            await notes.do(note("before"))
            with held(file) as let_go:
                (waiting,) = await asked_for(notes.do(note("after")))
                for _ in range(100):
                    assert await beside.read(all_notes) == ["before"]
                    await asyncio.sleep(0)
                assert not waiting.done()
                let_go()
                assert await waiting == "after"
        assert notes_in(file) == ["before", "of another process", "after"]

    asyncio.run(go())


def test_what_is_asked_for_meanwhile_is_done_in_that_order(file: Path) -> None:
    texts = [f"{number}" for number in range(2 * TOGETHER + 2)]

    async def go() -> None:
        async with opened(file) as notes:
            with held(file) as let_go:
                waiting = await asked_for(*(notes.do(note(text)) for text in texts))
                let_go()
                assert await asyncio.gather(*waiting) == texts

    asyncio.run(go())
    assert notes_in(file) == ["of another process", *texts]


def test_an_error_of_one_undoes_that_alone(file: Path) -> None:
    async def go() -> None:
        async with opened(file) as notes:
            with held(file) as let_go:
                first, one, wrong, other = await asked_for(
                    notes.do(note("first")),
                    notes.do(note("one")),
                    notes.do(failing("wrong", LookupError("of its own"))),
                    notes.do(note("other")),
                )
                let_go()
                assert [await each for each in (first, one, other)] == ["first", "one", "other"]
                with pytest.raises(LookupError, match="of its own"):
                    await wrong
            with pytest.raises(LookupError):
                await notes.do(failing("alone", LookupError()))
            with pytest.raises(LookupError):
                await notes.do(failing("alone in the thread", LookupError()), briefly=False)

    asyncio.run(go())
    assert notes_in(file) == ["of another process", "first", "one", "other"]


def test_what_is_wrong_with_the_file_undoes_all_and_is_raised_by_all(file: Path) -> None:
    async def go() -> None:
        async with opened(file) as notes:
            with held(file) as let_go:
                first, *others = await asked_for(
                    notes.do(note("first")),
                    notes.do(note("one")),
                    notes.do(failing("wrong", sqlite3.OperationalError("no room"))),
                    notes.do(note("other")),
                )
                let_go()
                assert await first == "first"
                failed = await asyncio.gather(*others, return_exceptions=True)
            assert [type(error) for error in failed] == [CannotBeUsedError] * 3
            assert all("no room" in str(error) for error in failed)
            assert await notes.do(note("later")) == "later"

    asyncio.run(go())
    assert notes_in(file) == ["of another process", "first", "later"]


def test_a_caller_that_gives_up_does_not_disturb_those_that_wait(file: Path) -> None:
    async def go() -> None:
        async with opened(file) as notes:
            with held(file) as let_go:
                first, one, other = await asked_for(*(notes.do(note(text)) for text in ("first", "one", "other")))
                for each in (first, one):
                    each.cancel()
                let_go()
                assert await other == "other"
                assert [type(each) for each in await asyncio.gather(first, one, return_exceptions=True)] == [
                    asyncio.CancelledError,
                    asyncio.CancelledError,
                ]
            assert await notes.do(note("later")) == "later"

    asyncio.run(go())
    assert notes_in(file) == ["of another process", "first", "one", "other", "later"]


def test_closing_waits_for_what_was_asked_for_and_may_be_repeated(file: Path) -> None:
    texts = [f"{number}" for number in range(2 * TOGETHER + 2)]

    async def go() -> None:
        async with opened(file) as notes:
            with held(file) as let_go:
                waiting = await asked_for(*(notes.do(note(text)) for text in texts))
                (closed,) = await asked_for(notes.close())
                let_go()
                await closed
                assert all(each.done() for each in waiting)
                assert await asyncio.gather(*waiting) == texts
            await notes.close()
            for refused in (notes.do(note("late")), notes.read(all_notes), notes.open()):
                with pytest.raises(CannotBeUsedError, match="closed"):
                    await refused

    asyncio.run(go())
    assert notes_in(file) == ["of another process", *texts]


def test_a_file_that_is_removed_is_made_again(file: Path) -> None:
    async def go() -> None:
        async with opened(file) as notes:
            await notes.do(note("lost"))
            for path in file.parent.glob(f"{file.name}*"):
                path.unlink()
            assert await notes.read(all_notes) == []
            await notes.do(note("kept"))

    asyncio.run(go())
    assert notes_in(file) == ["kept"]


def test_a_file_that_is_replaced_is_gone_on_with(file: Path) -> None:
    another = file.with_name("another.db")

    async def go() -> None:
        async with opened(file) as notes, opened(another) as others:
            await notes.do(note("lost"))
            await others.do(note("brought"))
            await others.close()
            for suffix in ("-wal", "-shm"):
                file.with_name(file.name + suffix).unlink()
            another.replace(file)
            await notes.do(note("kept"))
            assert await notes.read(all_notes) == ["brought", "kept"]

    asyncio.run(go())
    assert notes_in(file) == ["brought", "kept"]


def test_a_file_that_is_damaged_while_in_use_is_put_aside_and_made_again(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with opened(file) as notes:
            for number in range(LOGGED + 1):  # the log is written back into the file
                await notes.do(note(f"{number}" * 100))
            with file.open("r+b") as content:
                content.write(b"no database" * (file.stat().st_size // 11))
            async with opened(file.with_name("unrelated.db")):
                with pytest.raises(CannotBeUsedError, match="the notes are lost"):
                    await reading_afresh(notes)
            await notes.do(note("kept"))

    asyncio.run(go())
    assert notes_in(file) == ["kept"]
    assert list(file.parent.glob("notes.db.damaged-*"))
    assert "put aside" in caplog.text


async def reading_afresh(notes: LoopFile) -> None:
    """Read what SQLite has not in memory, for which it looks into the file."""

    def read(connection: sqlite3.Connection) -> None:
        connection.execute("pragma cache_size = 1")
        connection.execute("pragma shrink_memory")
        connection.execute("pragma integrity_check").fetchall()
        all_notes(connection)

    await notes.do(read)


def test_closing_that_is_given_up_closes_nevertheless(file: Path) -> None:
    log = file.with_name(f"{file.name}-wal")

    async def go() -> None:
        async with opened(file) as notes:
            with held(file) as let_go:
                (waiting,) = await asked_for(notes.do(note("kept")))
                (closing_,) = await asked_for(notes.close())
                closing_.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closing_
                let_go()
                assert await waiting == "kept"
            await notes.close()
            assert not log.exists(), "nobody has the file open"

    asyncio.run(go())
    assert notes_in(file) == ["of another process", "kept"]


def test_a_loop_that_ends_while_the_file_is_being_closed_closes_it(file: Path) -> None:
    async def go() -> LoopFile:
        notes = LoopFile(file, 1, SCHEMA, "the notes are lost", error=CannotBeUsedError)
        await notes.open()
        let_go = stack.enter_context(held(file))
        await asked_for(notes.do(note("kept")), notes.close())
        asyncio.get_running_loop().call_soon(let_go)
        return notes

    with ExitStack() as stack:
        notes = asyncio.run(go())
    notes._thread.shutdown(wait=True)
    assert not file.with_name(f"{file.name}-wal").exists(), "nobody has the file open"


def test_a_folder_that_cannot_be_used_is_said_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("a file")

    async def go() -> None:
        notes = LoopFile(tmp_path / "in the way" / "notes.db", 1, SCHEMA, "nothing", error=CannotBeUsedError)
        for work in (notes.open(), notes.do(note("one")), notes.read(all_notes)):
            with pytest.raises(CannotBeUsedError, match="in the way"):
                await work
        await notes.close()

    asyncio.run(go())
