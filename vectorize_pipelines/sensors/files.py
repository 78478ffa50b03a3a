"""The sensors for new, changed and deleted files, of the corpus and of the gallery."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import ModelNotFetchedError, VectorizeError
from vectorize_pipelines.jobs import embed_corpus, embed_gallery
from vectorize_pipelines.partitions import today
from vectorize_pipelines.pipeline.files.comparison import PARTS, FolderComparison
from vectorize_pipelines.pipeline.files.documents import compare_corpus
from vectorize_pipelines.pipeline.files.images import compare_gallery
from vectorize_pipelines.runs.dead import close_dead_runs
from vectorize_pipelines.runs.tags import COLLECTION_TAG, MODE_TAG, SHARD_TAG, UNFINISHED
from vectorize_pipelines.settings import CorpusSettings, GallerySettings, Settings, load_settings

if TYPE_CHECKING:
    from vectorize_pipelines.compat import AssetJob

#: How long the same work is left alone after a run that did not get it done: doubled each time, up to an hour.
FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The work that the last run over a shard was launched for, how often in a row, and when that may be again."""

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

    def drain_request(self, settings: Settings, shard: Shard = WHOLE, *, reconcile: bool = False) -> dg.RunRequest:
        """Return a request for a drain run of the configured folder, or of a shard of it."""
        config: dict[str, Any] = {"mode": "drain", "reconcile": reconcile}
        tags = {MODE_TAG: "drain", COLLECTION_TAG: self.section(settings).collection}
        if not shard.is_whole:
            config["shard"] = tags[SHARD_TAG] = str(shard)
        return dg.RunRequest(partition_key=today(), run_config={"ops": {self.asset: {"config": config}}}, tags=tags)

    def shards_under_way(self, instance: dg.DagsterInstance, collection: str) -> list[Shard]:
        """Return the shards of this collection whose drain runs have not ended; that of the whole among them."""
        tags = {MODE_TAG: "drain", COLLECTION_TAG: collection}
        runs = instance.get_runs(dg.RunsFilter(job_name=self.job.name, statuses=UNFINISHED, tags=tags))
        return [Shard.parse(run.tags.get(SHARD_TAG, str(WHOLE))) for run in runs]

    def shards_of(self, settings: Settings, files: int) -> list[Shard]:
        """Return the shards that so many files are brought up to date in.

        Their count is a power of two, so that it stays the same while a folder grows a little.
        """
        most = self.section(settings).files_per_run
        count = 1
        while most is not None and files > most * count and count < PARTS:
            count *= 2
        return Shard.layout(count)


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
            under_way = folder.shards_under_way(context.instance, folder.section(settings).collection)
            beside = _beside(under_way)
            if under_way and not beside:
                return dg.SkipReason(f"A drain run of the {folder.name} is under way.")
            comparison = folder.compare(settings)
            shards = beside or folder.shards_of(settings, comparison.number_of_files)
            work = {shard: digest for shard in shards if (digest := comparison.digest(shard))}
            if not work:
                return dg.SkipReason(f"{comparison.unchanged} files, all unchanged.")
            left = f"The same {comparison.changed} changed and {comparison.vanished} vanished files were left"
        except ModelNotFetchedError as error:  # by the run, which may take as long as that takes
            work, under_way = {WHOLE: f"not fetched: {error}"}, []
            left = "The model was not fetched"
        except VectorizeError as error:
            return dg.SkipReason(f"{error}")
        waiting = {shard: digest for shard, digest in work.items() if shard not in under_way}
        if not waiting:
            return dg.SkipReason(f"Drain runs of the shards of the {folder.name} with changes are under way.")
        launch, cursors = _due(_read_cursors(context.cursor), waiting)
        if not launch:
            seconds = min(cursors[str(shard)].not_before for shard in waiting) - time.time()
            return dg.SkipReason(f"{left} by the last run; the next try is in {seconds:.0f} s.")
        requests = [folder.drain_request(settings, shard) for shard in launch]
        cursor = json.dumps({shard: asdict(each) for shard, each in cursors.items()})
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    return new_files


def _beside(under_way: Sequence[Shard]) -> list[Shard]:
    """Return the shards that may be at work beside those that are; empty where a run is to be waited for."""
    counts = {shard.count for shard in under_way}
    if len(counts) != 1 or PARTS % (count := counts.pop()):
        return []  # whose work is not told apart here
    shards = Shard.layout(count)
    return shards if set(shards) - set(under_way) else []


def _due(before: Mapping[str, _Cursor], work: Mapping[Shard, str]) -> tuple[list[Shard], dict[str, _Cursor]]:
    """Return the shards that a run is to be launched for now, and the cursors as they are then."""
    now = time.time()
    launch: list[Shard] = []
    cursors = dict(before)
    for shard, digest in work.items():
        last = before.get(str(shard), _Cursor())
        if digest == last.digest and now < last.not_before:
            continue
        launches = last.launches + 1 if digest == last.digest else 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (launches - 1), LONGEST_PAUSE_SECONDS)
        cursors[str(shard)] = _Cursor(digest, launches, now + pause)
        launch.append(shard)
    counts = {shard.count for shard in work}
    return launch, {name: each for name, each in cursors.items() if Shard.parse(name).count in counts}


def _read_cursors(cursor: str | None) -> dict[str, _Cursor]:
    """Return the cursors of shards; that of an earlier version, which knew none, was of the whole."""
    found = json.loads(cursor) if cursor else {}
    if "digest" in found:
        found = {str(WHOLE): found}
    return {shard: _Cursor(**each) for shard, each in found.items()}
