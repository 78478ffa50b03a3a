"""The resource of API keys: which file it opens, and what it shows."""

import asyncio
from pathlib import Path

import dagster as dg

from vectorize_pipelines.resources.keys import KeyPoolResource


def test_an_asset_borrows_keys_and_shows_their_use(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{api_key: sk-hush-1, name: one, rpm_limit: 10}, {api_key: sk-hush-2, name: two}]")

    @dg.asset
    def answers(keys: KeyPoolResource) -> dg.MaterializeResult[None]:
        async def ask() -> None:
            pool = keys.open()
            await pool.release_key(await pool.acquire_key(tokens=5), tokens=7)
            await pool.disable("two", "not needed")
            await pool.close()

        asyncio.run(ask())
        return dg.MaterializeResult(metadata=keys.metadata())

    result = dg.materialize([answers], resources={"keys": KeyPoolResource(keys_file=str(file))})
    (materialized,) = result.asset_materializations_for_node("answers")
    table = materialized.metadata["keys"]
    assert isinstance(table, dg.TableMetadataValue)
    rows = {record.data["key"]: record.data for record in table.records}
    assert (rows["one"]["state"], rows["one"]["tokens_last_minute"], rows["one"]["calls"]) == ("available", 7, 1)
    assert (rows["two"]["state"], rows["two"]["next_available_seconds"]) == ("disabled", "never")
    assert "hush" not in str(materialized)


def test_without_keys_there_is_nothing_to_show(home: Path, tmp_path: Path) -> None:
    assert KeyPoolResource(keys_file=str(tmp_path / "none.yaml")).metadata() == {}
