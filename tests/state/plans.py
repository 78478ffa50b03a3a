"""How a database goes about a query."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database


def plan_of(installation: Settings, call: Callable[[], object]) -> str:
    """The database's own plan of the last query that a call sends."""
    sent: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    statement, parameters = sent[-1]
    with closing(Database.open(installation)) as database, database.read() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("set enable_seqscan = off")  # a table of a few rows is best read as a whole
        explain = "explain query plan" if database.is_sqlite else "explain"
        return "\n".join(str(line[-1]) for line in connection.exec_driver_sql(f"{explain} {statement}", parameters))
