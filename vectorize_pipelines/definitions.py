"""The one `dg.Definitions`: wires, decides nothing."""

import dagster as dg

from vectorize_pipelines.assets import checks, from_files, from_kafka, maintenance, reembedding, request_checks
from vectorize_pipelines.assets.single_request import embed_request
from vectorize_pipelines.jobs import (
    REQUEST_JOBS,
    check_indexes,
    embed_corpus,
    embed_gallery,
    maintain_collections,
    reembed_collection,
    report_corpus,
)
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import VectorStoreIOManager, VectorStoreResource
from vectorize_pipelines.retention import deliver_callbacks, retention
from vectorize_pipelines.schedules import (
    check_indexes_daily,
    clean_up,
    drop_generations,
    maintain_collections_daily,
    reconcile_corpus,
    reconcile_gallery,
    waiting_callbacks,
)
from vectorize_pipelines.sensors.kafka_lag import LAG_SENSORS
from vectorize_pipelines.sensors.new_files import new_corpus_files, new_gallery_files
from vectorize_pipelines.sensors.run_failures import failed_runs

_encoder = EncoderResource()
_vector_store = VectorStoreResource()

defs = dg.Definitions(
    assets=[
        from_files.corpus_embeddings,
        from_files.corpus_report,
        from_files.gallery_embeddings,
        from_kafka.text_embeddings,
        from_kafka.image_embeddings,
        from_kafka.document_embeddings,
        maintenance.maintained_collections,
        reembedding.reembedding,
    ],
    asset_checks=[*checks.CHECKS, *request_checks.CHECKS, *reembedding.CHECKS, *maintenance.CHECKS],
    jobs=[
        embed_corpus,
        embed_gallery,
        report_corpus,
        *(each.job for each in REQUEST_JOBS.values()),
        embed_request,
        reembed_collection,
        reembedding.drop_old_generations,
        maintain_collections,
        check_indexes,
        retention,
        deliver_callbacks,
    ],
    schedules=[
        reconcile_corpus,
        reconcile_gallery,
        drop_generations,
        maintain_collections_daily,
        check_indexes_daily,
        clean_up,
        waiting_callbacks,
    ],
    sensors=[new_corpus_files, new_gallery_files, *LAG_SENSORS, failed_runs],
    resources={
        "encoder": _encoder,
        "vector_store": _vector_store,
        "vector_store_io_manager": VectorStoreIOManager(vector_store=_vector_store, encoder=_encoder),
    },
    # A process of its own for every step would load the model anew for each.
    executor=dg.in_process_executor,
)
