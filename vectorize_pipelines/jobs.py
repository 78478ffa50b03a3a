"""The jobs that users launch by name, from the UI, the command line, a schedule or GraphQL, and their runs' tags."""

import dagster as dg

MODE_TAG = "vectorize/mode"
#: The collection that a drain run brings up to date.
COLLECTION_TAG = "vectorize/collection"
#: The part of the work that a run owns, as `0/4`: the first of four.
SHARD_TAG = "vectorize/shard"
LAUNCHED_BY_TAG = "vectorize/launched_by"
#: Dagster's own.
MAX_RETRIES_TAG = "dagster/max_retries"

#: Of a run that may still be at work.
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

embed_corpus = dg.define_asset_job(
    "embed_corpus",
    selection=dg.AssetSelection.assets("corpus_embeddings"),
    description="Brings the collection of the configured corpus up to date and checks it.",
)

embed_gallery = dg.define_asset_job(
    "embed_gallery",
    selection=dg.AssetSelection.assets("gallery_embeddings"),
    description="Brings the collection of the configured gallery up to date and checks it.",
)

maintain_collections = dg.define_asset_job(
    "maintain_collections",
    selection=dg.AssetSelection.assets("maintained_collections"),
    description="Compacts every collection and builds and tunes its indexes.",
)

check_indexes = dg.define_asset_job(
    "check_indexes",
    selection=dg.AssetSelection.checks(
        *(dg.AssetCheckKey(dg.AssetKey(asset), "index_recall") for asset in ("corpus_embeddings", "gallery_embeddings"))
    ),
    description="Measures how many of the nearest rows the searches find.",
)

report_corpus = dg.define_asset_job(
    "report_corpus",
    selection=dg.AssetSelection.assets("corpus_report"),
    description="Reports on the documents of the given days.",
)

reembed_collection = dg.define_asset_job(
    "reembed_collection",
    selection=dg.AssetSelection.assets("reembedding"),
    description="Fills a new generation of a collection, embedded with another model, beside the one that is read.",
)
