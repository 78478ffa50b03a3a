"""Opens runs over assessment tasks: those that wait in the topic, or those of some days."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.kafka.followed import ASSESSMENTS, followed_topic
from vectorize_pipelines.kafka.lookup import MessageLookup
from vectorize_pipelines.kafka.sources import DrainSource, MessageSource, ReplaySource
from vectorize_pipelines.kafka.topics import Family, compression_of, create_topics
from vectorize_pipelines.kafka.transactions import TransactionalProducer
from vectorize_pipelines.pipeline.assessments.assessing import Judge
from vectorize_pipelines.pipeline.assessments.calls import Calls, OpenModel
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.progress import FinishedOffsets
from vectorize_pipelines.pipeline.assessments.provider_outage import ProviderOutage
from vectorize_pipelines.pipeline.assessments.reading import TaskReading
from vectorize_pipelines.pipeline.assessments.results import Results, TopicResults
from vectorize_pipelines.pipeline.assessments.stream import AssessmentRun
from vectorize_pipelines.pipeline.assessments.window import TaskWindow
from vectorize_pipelines.pipeline.stop_policy import AT_THE_END
from vectorize_pipelines.settings import KafkaSettings, Settings
from vectorize_pipelines.state.assessments import Assessments


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """The task of a replay run. `window`: first and last day, both included; `force`: judge again what was judged."""

    run_id: str
    window: tuple[date, date]
    force: bool = False


def open_drain(settings: Settings, request: DrainRequest, open_model: OpenModel) -> AssessmentRun:
    """Return the run over what lies behind the committed offsets of a shard, and what arrives while it goes on.

    It fences an earlier run of the same shard. Raises `KafkaError`, `LedgerError`, and `SettingsError` where Kafka is
    not configured.
    """
    kafka = settings.kafka
    # Says soon that nobody answers: a transaction would be waited for until an outage is over.
    create_topics(kafka, _families(settings))
    with ExitStack() as resources:
        # First of all: what the earlier run left open has to be settled before its offsets are read.
        producer = _producer(kafka, str(request.shard), resources)
        source = DrainSource(kafka, followed_topic(kafka, ASSESSMENTS), request.shard)
        resources.callback(source.close)
        assessments = Assessments.open(settings)
        resources.callback(assessments.close)
        window = _window(settings)
        results = TopicResults(settings, assessments, producer, window.settle, source.group_metadata(), request.run_id)
        # Before anything that may take long: the run ends with the day that it began in.
        policy = request.stop_policy(kafka.drain)
        lookup = MessageLookup(kafka)
        resources.callback(lookup.close)
        finished = {place: FinishedOffsets.parse(*found) for place, found in source.notes().items()}
        days = partial(_days, settings)
        reading = TaskReading(window, source, assessments, policy, days, finished, lookup=lookup)
        return _run(settings, request.run_id, window, reading, results, source, open_model, resources)


def open_replay(settings: Settings, request: ReplayRequest, open_model: OpenModel) -> AssessmentRun:
    """Return the run over the tasks whose time lies in the window; commits no offset and answers nobody.

    Tasks that were completed are left as they are, unless the request says otherwise; those whose time was over are
    judged. Raises as `open_drain`.
    """
    kafka = settings.kafka
    # Says soon that nobody answers: a transaction would be waited for until an outage is over.
    create_topics(kafka, _families(settings))
    with ExitStack() as resources:
        topic, first_day = followed_topic(kafka, ASSESSMENTS), settings.partitions.start
        source = ReplaySource(kafka, topic, request.window, first_day)
        resources.callback(source.close)
        assessments = Assessments.open(settings)
        resources.callback(assessments.close)
        producer = None
        if _is_searchable(settings):
            producer = _producer(kafka, f"replay.{request.run_id}", resources)
        window = _window(settings)
        results = Results(settings, assessments, producer, window.settle, force=request.force)
        at_its_start = _days(settings)  # what lies in the future belongs to the window's last day, also after midnight
        reading = TaskReading(
            window,
            source,
            assessments,
            AT_THE_END,
            lambda: at_its_start,
            {},
            is_replay=True,
            force=request.force,
        )
        return _run(settings, request.run_id, window, reading, results, source, open_model, resources)


def _run(
    settings: Settings,
    run_id: str,
    window: TaskWindow,
    reading: TaskReading,
    results: Results,
    source: MessageSource,
    open_model: OpenModel,
    resources: ExitStack,
) -> AssessmentRun:
    outage = ProviderOutage(settings.pipeline.store_outage_seconds)
    calls = Calls(window, Judge(settings, run_id), open_model, settings.assessments.concurrency, outage)
    owned = ExitStack()
    run = AssessmentRun(window, reading, calls, results, lambda: source.lost, owned)
    owned.push(resources.pop_all())
    return run


def _producer(kafka: KafkaSettings, name: str, resources: ExitStack) -> TransactionalProducer:
    producer = TransactionalProducer(kafka, f"{ASSESSMENTS}.{name}", **compression_of(kafka, Family.ASSESSMENTS))
    resources.callback(producer.close)
    return producer


def _window(settings: Settings) -> TaskWindow:
    return TaskWindow(settings.assessments.held_tasks, settings.assessments.held_bytes)


def _families(settings: Settings) -> tuple[Family, ...]:
    return (Family.ASSESSMENTS, Family.REQUESTS) if _is_searchable(settings) else (Family.ASSESSMENTS,)


def _is_searchable(settings: Settings) -> bool:
    return settings.assessments.collection is not None or settings.assessments.image_collection is not None


def _days(settings: Settings) -> Days:
    return Days(settings.partitions.start, datetime.now(UTC).date())
