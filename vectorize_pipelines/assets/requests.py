"""Assets from Kafka, each fed by its modality's topics: `text_embeddings`, `image_embeddings`, `document_embeddings`.

A run replays the messages of its days, or, with `mode: drain`, takes those that wait and follows the topic until it is
idle. Sensors launch the latter (`sensors/requests.py`).
"""

import dagster as dg
from pydantic import Field

from vectorize_pipelines.assets.files import OWNERS, RETRIES
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.documents.chunking import chunker_fingerprint
from vectorize_pipelines.images.items import READER_VERSION
from vectorize_pipelines.jobs import REQUEST_JOBS
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.messages import SCHEMA_VERSION
from vectorize_pipelines.partitions import daily_partitions, window_of
from vectorize_pipelines.pipeline.requests.runs import DrainRequest, ReplayRequest, open_drain, open_replay
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import COLLECTION_METADATA, VectorStoreResource
from vectorize_pipelines.runs.config import FollowConfig
from vectorize_pipelines.runs.drain import DrainRun
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import Settings, load_settings


class RequestConfig(FollowConfig):
    """The config of a run of an asset from Kafka; what is left empty is as the settings say."""

    force: bool = Field(False, description="encode also what has not changed")

    def drain_request(self, modality: Modality, shard: Shard, run: dg.DagsterRun, beside: DrainRun) -> DrainRequest:
        """The drain that this configuration makes of a run."""
        return DrainRequest(
            modality,
            run.run_id,
            shard,
            once=self.once,
            force=self.force,
            idle_seconds=self.idle_seconds,
            max_seconds=self.max_seconds,
            should_stop=beside.reason_to_end,
        )


def _code_version(settings: Settings, modality: Modality) -> str:
    """Return model, reader, and form of the messages, as the settings name them."""
    if modality is Modality.IMAGE:
        return f"{settings.models.image} reader=image/{READER_VERSION} messages={SCHEMA_VERSION}"
    documents, cut = settings.documents, ""
    if modality is Modality.DOCUMENT:
        cut = f" {chunker_fingerprint(documents.chunk_tokens or 0, documents.overlap_tokens)}"
    return f"{settings.models.text}{cut} messages={SCHEMA_VERSION}"


def request_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the assets from Kafka, one for each modality."""
    return [_embeddings(settings, modality) for modality in (Modality.TEXT, Modality.IMAGE, Modality.DOCUMENT)]


def _embeddings(settings: Settings, modality: Modality) -> dg.AssetsDefinition:
    wiring = REQUEST_JOBS[modality]
    topic = TopicNames(settings.kafka.topic_prefix).requests(modality)

    @dg.asset(
        name=wiring.asset,
        description=f"The {modality.value} requests of the topics {topic} and {topic}.priority as vectors.",
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="vector_store_io_manager",
        metadata={COLLECTION_METADATA: settings.kafka.collection(modality), "topic": topic},
        code_version=_code_version(settings, modality),
        pool=wiring.pool,
        retry_policy=RETRIES,
        kinds={"kafka", "python", settings.store.kind},
        owners=OWNERS,
        group_name="kafka",
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        config: RequestConfig,
        encoder: EncoderResource,
        vector_store: VectorStoreResource,
    ) -> EmbeddingStream:
        """Opens the topics for this run; the IO manager reads the stream and writes it."""
        with translate_errors():
            settings, run = load_settings(), context.run
            require_servers(settings.kafka)
            if config.mode == "replay":
                replay = ReplayRequest(modality, run.run_id, window_of(context.partition_key_range), config.force)
                return open_replay(settings, replay, vector_store.open(), encoder.lease)
            shard = Shard.parse(config.shard)
            beside = DrainRun(context.instance, run.run_id, followed_topic(settings.kafka, modality), shard)
            beside.take_over()
            drain = config.drain_request(modality, shard, run, beside)
            return open_drain(settings, drain, vector_store.open(), encoder.lease)

    return embeddings
