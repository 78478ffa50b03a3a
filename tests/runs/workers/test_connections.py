"""The connections to Dagster's database that workers and the daemon keep."""

from contextlib import closing

import dagster as dg
import pytest
import sqlalchemy as sa

from vectorize_pipelines.compat import kept_connections
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database

pytestmark = [pytest.mark.postgresql, pytest.mark.redis]

#: Those of clients: autovacuum has some of its own.
_OTHERS = (
    "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
    "and backend_type = 'client backend'"
)


def test_one_is_kept_and_another_is_made_once_the_server_has_ended_it(
    shared: Settings, instance: dg.DagsterInstance
) -> None:
    with closing(Database.open(shared)) as database, database.statements() as connection:

        def others() -> set[int]:
            return set(connection.execute(sa.text(f"select pid {_OTHERS}")).scalars())

        with kept_connections(instance):
            assert instance.get_runs_count() == 0
            kept = others()
            assert len(kept) == 1
            assert instance.get_runs_count() == 0
            assert others() == kept
            # As a restart of the server does.
            connection.execute(sa.text(f"select pg_terminate_backend(pid, 60000) {_OTHERS}"))
            assert instance.get_runs_count() == 0
            assert len(others() - kept) == 1
