"""Two small jobs, launched by schedules: what is removed once a day, and the callbacks that no run delivered."""

import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from vectorize_pipelines.errors import DamagedStateError, KafkaError
from vectorize_pipelines.messaging.callbacks import CallbackSender
from vectorize_pipelines.messaging.lost_requests import fail_lost_requests
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.runs.tags import FINISHED
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.assessments import Assessments
from vectorize_pipelines.state.attempts import purge_deaths
from vectorize_pipelines.state.callbacks import CallbackOutbox
from vectorize_pipelines.state.cameras import Cameras
from vectorize_pipelines.state.damage import explain
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.provider_calls import purge_calls
from vectorize_pipelines.state.versions import SourceVersions

logger = logging.getLogger(__name__)

#: Runs, or storage ids of events, that one query asks for.
RUNS_TOGETHER = 200


@dg.op(out=dg.Out(dg.Nothing))
def remove_what_expired(context: dg.OpExecutionContext) -> None:
    """Remove what has expired, and say so in the run's metadata and log."""
    settings = load_settings()
    now = datetime.now(UTC)
    with translate_errors():
        removed = _purge_requests(settings, now)
    if settings.retention.runs_days is not None:
        removed["runs"] = purge_runs(context.instance, now - timedelta(days=settings.retention.runs_days))
    context.log.info("removed: %s", ", ".join(f"{number} {name}" for name, number in removed.items()))
    with translate_errors():
        lost = _fail_lost_requests(settings, now - timedelta(days=settings.ledger.retention_days))
    if lost:
        context.log.warning("%d requests failed, since their messages are gone from their topics", lost)
    context.add_output_metadata({**removed, "lost_requests": lost})


@dg.op(out=dg.Out(dg.Nothing))
def deliver_waiting_callbacks(context: dg.OpExecutionContext) -> None:
    """Deliver the callbacks that are due; what fails again waits for its next time."""
    with translate_errors(), closing(CallbackSender.open(load_settings())) as sender:
        done = sender.deliver_due()
    context.add_output_metadata(
        {"delivered": done.delivered, "postponed": done.postponed, "given_up": done.given_up},
    )


@dg.job(
    description="Removes requests, callbacks and assessments that finished `ledger.retention_days` ago, and what "
    "`retention.…` says; fails requests that have waited that long, and whose messages are gone."
)
def retention() -> None:
    remove_what_expired()


@dg.job(description="Posts the callbacks that are due: those left over by runs, and those tried again.")
def deliver_callbacks() -> None:
    deliver_waiting_callbacks()


def _purge_requests(settings: Settings, now: datetime) -> dict[str, int]:
    kept_since = now - timedelta(days=settings.ledger.retention_days)
    removed: dict[str, int] = {}
    with closing(RequestLedger.open(settings)) as ledger:
        removed["requests"] = ledger.purge(kept_since)
    with closing(CallbackOutbox.open(settings)) as outbox:
        removed["callbacks"] = outbox.purge(kept_since)
    with closing(Assessments.open(settings)) as assessments:
        removed["assessments"] = assessments.purge(kept_since)
    with closing(Cameras.open(settings)) as cameras:
        removed["cameras"] = cameras.purge(kept_since)
    with closing(Database.open(settings)) as database:
        removed["leases"] = leases.purge(database, kept_since)
    removed["deaths"] = purge_deaths(settings, kept_since)
    removed["provider_calls"] = purge_calls(settings, kept_since)
    if settings.retention.deletions_days is not None:
        with closing(SourceVersions.open(settings)) as versions:
            removed["deletions"] = versions.purge_deletions(now - timedelta(days=settings.retention.deletions_days))
    return removed


def _fail_lost_requests(settings: Settings, before: datetime) -> int:
    """Fail the requests whose messages are gone; return their number."""
    if settings.kafka.bootstrap_servers is None:
        return 0
    with closing(RequestLedger.open(settings)) as ledger:
        try:
            return fail_lost_requests(settings.kafka, ledger, before)
        except KafkaError as error:
            logger.warning("requests whose messages are gone are looked for the next time: %s", error)
            return 0


def purge_runs(instance: dg.DagsterInstance, finished_before: datetime) -> int:
    """Delete runs that finished before then, with their events; return their number.

    A run that was the last to materialize a partition stays: with its events Dagster would forget that the partition
    is there.
    """
    needed = _latest_runs(instance)
    filters = dg.RunsFilter(statuses=FINISHED, updated_before=finished_before)
    removed, cursor = 0, None
    while True:
        found = instance.get_run_records(filters, limit=RUNS_TOGETHER, cursor=cursor)
        for record in found:
            run_id = record.dagster_run.run_id
            if run_id not in needed:
                _delete(instance, run_id)
                removed += 1
            else:
                cursor = run_id
        if len(found) < RUNS_TOGETHER:
            return removed


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run; a damaged file of its events, which goes nowhere else, does not keep the others from going."""
    try:
        instance.delete_run(run_id)
    except SQLAlchemyError as error:
        known = explain(error, Path(instance.root_directory))
        if not isinstance(known, DamagedStateError):
            raise
        logger.warning("the events of the run %s cannot be deleted: %s", run_id, known)


def _latest_runs(instance: dg.DagsterInstance) -> set[str]:
    """The runs whose materializations are the latest of a partition, or of an asset without partitions."""
    runs: set[str] = set()
    for asset in instance.get_asset_keys():
        latest = instance.get_latest_materialization_event(asset)
        if latest is not None:
            runs.add(latest.run_id)
        for some in _storage_ids(instance, asset):
            wanted = dg.AssetRecordsFilter(asset, storage_ids=some)
            runs.update(record.run_id for record in instance.fetch_materializations(wanted, limit=len(some)).records)
    return runs


def _storage_ids(instance: dg.DagsterInstance, asset: dg.AssetKey) -> Iterator[list[int]]:
    latest = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION)
    ids = sorted(latest.values())
    for start in range(0, len(ids), RUNS_TOGETHER):
        yield ids[start : start + RUNS_TOGETHER]
