"""The sensor for new, changed and deleted files of the corpus."""

import json
import time
from dataclasses import asdict, dataclass

import dagster as dg

from vectorize_pipelines.dead_runs import close_dead_runs
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.jobs import COLLECTION_TAG, MODE_TAG, embed_corpus
from vectorize_pipelines.partitions import today
from vectorize_pipelines.pipeline.documents import compare_corpus
from vectorize_pipelines.settings import CorpusSettings, load_settings

#: How long the same work is left alone after a run that did not get it done: doubled each time, up to an hour.
FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The work that the last run was launched for, how often in a row, and when it may be launched again."""

    digest: str = ""
    launches: int = 0
    not_before: float = 0.0


def watched() -> bool:
    """Whether sensor and schedule are on from the start; the example that is the default corpus is not watched."""
    corpus = load_settings().corpus
    return corpus.watch and corpus.path != CorpusSettings().path


def drain_request(*, reconcile: bool = False) -> dg.RunRequest:
    """A drain run of the configured corpus."""
    collection = load_settings().corpus.collection
    config = {"mode": "drain", "reconcile": reconcile}
    return dg.RunRequest(
        partition_key=today(),
        run_config={"ops": {"corpus_embeddings": {"config": config}}},
        tags={MODE_TAG: "drain", COLLECTION_TAG: collection},
    )


@dg.sensor(
    job=embed_corpus,
    minimum_interval_seconds=30,
    description="Launches a drain run when the corpus differs from what was embedded. Reads no file.",
    default_status=dg.DefaultSensorStatus.RUNNING if watched() else dg.DefaultSensorStatus.STOPPED,
)
def new_corpus_files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """No run key: those of failed runs would keep the work from being tried again."""
    try:
        settings = load_settings()
        close_dead_runs(context.instance, settings)
        if _drain_is_under_way(context.instance, settings.corpus.collection):
            return dg.SkipReason("A drain run of the corpus is under way.")
        comparison = compare_corpus(settings)
    except VectorizeError as error:
        return dg.SkipReason(f"{error}")
    if not comparison.changed and not comparison.vanished:
        return dg.SkipReason(f"{len(comparison.unchanged)} files, all unchanged.")
    last = _Cursor(**json.loads(context.cursor)) if context.cursor else _Cursor()
    digest, now = comparison.digest(), time.time()
    if digest == last.digest and now < last.not_before:
        return dg.SkipReason(
            f"The same {len(comparison.changed)} changed and {len(comparison.vanished)} vanished files were left by "
            f"the last run; the next try is in {last.not_before - now:.0f} s."
        )
    launches = last.launches + 1 if digest == last.digest else 1
    pause = min(FIRST_PAUSE_SECONDS * 2 ** (launches - 1), LONGEST_PAUSE_SECONDS)
    cursor = _Cursor(digest, launches, now + pause)
    return dg.SensorResult(run_requests=[drain_request()], cursor=json.dumps(asdict(cursor)))


def _drain_is_under_way(instance: dg.DagsterInstance, collection: str) -> bool:
    tags = {MODE_TAG: "drain", COLLECTION_TAG: collection}
    return instance.get_runs_count(dg.RunsFilter(job_name=embed_corpus.name, statuses=_UNFINISHED, tags=tags)) > 0
