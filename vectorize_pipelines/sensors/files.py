"""The sensors for new, changed and deleted files, of the corpus and of the gallery."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import dagster as dg

from vectorize_pipelines.errors import ModelNotFetchedError, VectorizeError
from vectorize_pipelines.jobs import embed_corpus, embed_gallery
from vectorize_pipelines.partitions import today
from vectorize_pipelines.pipeline.files.comparison import FolderComparison
from vectorize_pipelines.pipeline.files.documents import compare_corpus
from vectorize_pipelines.pipeline.files.images import compare_gallery
from vectorize_pipelines.runs.dead import close_dead_runs
from vectorize_pipelines.runs.tags import COLLECTION_TAG, MODE_TAG, UNFINISHED
from vectorize_pipelines.settings import CorpusSettings, GallerySettings, Settings, load_settings

if TYPE_CHECKING:
    from vectorize_pipelines.compat import AssetJob

#: How long the same work is left alone after a run that did not get it done: doubled each time, up to an hour.
FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The work that the last run was launched for, how often in a row, and when it may be launched again."""

    digest: str = ""
    launches: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class WatchedFolder:
    """A folder whose asset is kept up to date.

    name     as in the names of sensor and schedule
    asset    the asset that a drain run embeds it with, `job` the job of such a run
    section  its settings; what is configured by default, an example or nothing, is not watched
    compare  finds what a drain run would have to do
    """

    name: str
    asset: str
    job: "AssetJob"
    section: Callable[[Settings], CorpusSettings | GallerySettings]
    compare: Callable[[Settings], FolderComparison]

    def watched(self, settings: Settings) -> bool:
        """Return whether sensor and schedule are on from the start."""
        section = self.section(settings)
        return section.watch and section.path != type(section)().path

    def drain_request(self, *, reconcile: bool = False) -> dg.RunRequest:
        """Return a request for a drain run of the configured folder."""
        config = {"mode": "drain", "reconcile": reconcile}
        return dg.RunRequest(
            partition_key=today(),
            run_config={"ops": {self.asset: {"config": config}}},
            tags={MODE_TAG: "drain", COLLECTION_TAG: self.section(load_settings()).collection},
        )

    def drain_is_under_way(self, instance: dg.DagsterInstance, collection: str) -> bool:
        """Return whether a drain run of this collection has not ended."""
        tags = {MODE_TAG: "drain", COLLECTION_TAG: collection}
        return instance.get_runs_count(dg.RunsFilter(job_name=self.job.name, statuses=UNFINISHED, tags=tags)) > 0


CORPUS = WatchedFolder("corpus", "corpus_embeddings", embed_corpus, lambda settings: settings.corpus, compare_corpus)
GALLERY = WatchedFolder(
    "gallery", "gallery_embeddings", embed_gallery, lambda settings: settings.gallery, compare_gallery
)


def new_files_sensor(folder: WatchedFolder, settings: Settings) -> dg.SensorDefinition:
    """Return the sensor that launches drain runs of a folder."""

    @dg.sensor(
        name=f"new_{folder.name}_files",
        job=folder.job,
        minimum_interval_seconds=30,
        description=f"Launches a drain run when the {folder.name} differs from what was embedded. Reads no file.",
        default_status=dg.DefaultSensorStatus.RUNNING if folder.watched(settings) else dg.DefaultSensorStatus.STOPPED,
    )
    def new_files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """No run key: those of failed runs would keep the work from being tried again."""
        try:
            settings = load_settings()
            close_dead_runs(context.instance, settings)
            if folder.drain_is_under_way(context.instance, folder.section(settings).collection):
                return dg.SkipReason(f"A drain run of the {folder.name} is under way.")
            comparison = folder.compare(settings)
            if not comparison.changed and not comparison.vanished:
                return dg.SkipReason(f"{len(comparison.unchanged)} files, all unchanged.")
            digest = comparison.digest()
            work = f"The same {len(comparison.changed)} changed and {len(comparison.vanished)} vanished files were left"
        except ModelNotFetchedError as error:  # by the run, which may take as long as that takes
            digest, work = f"not fetched: {error}", "The model was not fetched"
        except VectorizeError as error:
            return dg.SkipReason(f"{error}")
        last = _Cursor(**json.loads(context.cursor)) if context.cursor else _Cursor()
        now = time.time()
        if digest == last.digest and now < last.not_before:
            return dg.SkipReason(f"{work} by the last run; the next try is in {last.not_before - now:.0f} s.")
        launches = last.launches + 1 if digest == last.digest else 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (launches - 1), LONGEST_PAUSE_SECONDS)
        cursor = _Cursor(digest, launches, now + pause)
        return dg.SensorResult(run_requests=[folder.drain_request()], cursor=json.dumps(asdict(cursor)))

    return new_files
