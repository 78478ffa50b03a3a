"""A backfill of the installed chart in shards, each on a node of its own, of which one is lost in the middle."""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.kubernetes.installation import Installation, before_the_run
from tests.small_corpus import DAYS, write_document
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.runs.tags import SHARD_TAG
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import open_store

pytestmark = pytest.mark.timeout(600)

NODES = ("shard-one", "shard-two", "shard-three")
_ASSET = "corpus_embeddings"
#: More than enough for each shard to have several batches.
_DOCUMENTS_A_DAY = 20
_BATCH = 4
#: What a row says of its document, and not of its run or collection.
_COLUMNS = ("source_id", "item_index", "text", "partition", "metadata", "model", "content_hash")


def test_shards_on_three_nodes_of_which_one_is_lost_make_the_rows_of_one_run(
    installation: Installation, store_settings: StoreSettings, tmp_path: Path
) -> None:
    for name in NODES:
        installation.cluster.add_node(name, labels={"for": "shards"})
    folder = installation.shared / "in_shards"
    for day in range(len(DAYS)):
        for number in range(_DOCUMENTS_A_DAY):
            write_document(folder, f"{day}-{number}.md", f"# Lamp {number}\n\nIt burns paraffin since {day}.\n", day)
    go_on = installation.shared / "shards_go_on"

    whole = installation.backfill(_ASSET, map(str, DAYS), config(folder, "whole", WHOLE), {})
    backfills = [
        installation.backfill(_ASSET, map(str, DAYS), config(folder, "sharded", shard), tags(shard, go_on))
        for shard in Shard.layout(len(NODES))
    ]
    runs = [installation.run_of_backfill(each) for each in backfills]
    pods = [installation.paused(each) for each in runs]
    assert sorted(pod.spec.node_name for pod in pods) == sorted(NODES)
    assert len(NODES) <= len(rows(store_settings, tmp_path, "sharded")) <= len(NODES) * 2 * _BATCH

    installation.cluster.nodes[pods[1].spec.node_name].lose()
    assert installation.finished(runs[1]) == "FAILURE"
    expected = f"The run was lost: the machine {pods[1].spec.node_name} was lost"
    assert any(expected in message for message in installation.messages(runs[1]))
    repeated = installation.repeated(runs[1])
    go_on.touch()
    assert [installation.finished(each) for each in (runs[0], repeated, runs[2])] == ["SUCCESS"] * 3
    assert installation.pod_of(repeated).spec.node_name in {pods[0].spec.node_name, pods[2].spec.node_name}
    assert {"key": SHARD_TAG, "value": "1/3"} in installation.runs(runIds=[repeated])[0]["tags"]
    for each in (whole, *backfills):
        assert installation.finished_backfill(each, 180) == "COMPLETED_SUCCESS"

    sharded, together = (rows(store_settings, tmp_path, collection) for collection in ("sharded", "whole"))
    assert len(together) == len(DAYS) * _DOCUMENTS_A_DAY
    assert sharded == together


def config(folder: Path, collection: str, shard: Shard) -> dict[str, Any]:
    return {"ops": {_ASSET: {"config": {"path": str(folder), "collection": collection, "shard": str(shard)}}}}


def tags(shard: Shard, go_on: Path) -> dict[str, str]:
    small = [{"name": "VECTORIZE_PIPELINE__BATCH_ITEMS", "value": str(_BATCH)}]
    return {
        SHARD_TAG: str(shard),
        "dagster-k8s/config": before_the_run("pause", go_on, nodes={"for": "shards"}, env=small),
    }


def rows(store_settings: StoreSettings, folder: Path, collection: str) -> list[tuple[str, ...]]:
    """The rows of a collection, in an order of their own."""
    batches = open_store(store_settings, folder).scan(collection, _COLUMNS)
    return sorted(tuple(str(row[column]) for column in _COLUMNS) for each in batches for row in each.to_pylist())
