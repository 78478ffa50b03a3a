"""The jobs that users launch by name, from the UI, the command line, a schedule or GraphQL."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.followed import ASSESSMENTS, DETECTIONS

if TYPE_CHECKING:
    from vectorize_pipelines.compat import AssetJob

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
    selection=dg.AssetSelection.assets("maintained_collections").without_checks(),
    description="Compacts every collection and builds and tunes its indexes.",
)

#: A job of its own: one collection that cannot be maintained fails the other, and with it would skip this.
check_indexes = dg.define_asset_job(
    "check_indexes",
    selection=dg.AssetSelection.checks_for_assets("maintained_collections"),
    description="Measures in every collection how many of the nearest rows the searches find.",
)

report_corpus = dg.define_asset_job(
    "report_corpus",
    selection=dg.AssetSelection.assets("corpus_report"),
    description="Reports on the documents of the given days.",
)

report_camera_risk = dg.define_asset_job(
    "report_camera_risk",
    selection=dg.AssetSelection.assets("camera_risk"),
    description="Reports on what was assessed on the given days, by camera, and checks whether a camera is silent.",
)

reembed_collection = dg.define_asset_job(
    "reembed_collection",
    selection=dg.AssetSelection.assets("reembedding"),
    description="Fills a new generation of a collection, embedded with another model, beside the one that is read.",
)


@dataclass(frozen=True, slots=True)
class StreamJob:
    """The asset that the messages of a followed topic become, and the job of its runs.

    name  of the topic, one of `kafka.followed.FOLLOWED_NAMES`
    pool  has a place for each run that may follow it at the same time: one, unless somebody raised it
    """

    name: str
    asset: str
    pool: str
    job: "AssetJob"


def _request_job(modality: Modality) -> StreamJob:
    asset = f"{modality.value}_embeddings"
    job = dg.define_asset_job(
        f"embed_{modality.value}",
        selection=dg.AssetSelection.assets(asset),
        description=f"Embeds the {modality.value} requests of the days, or with mode: drain those that wait, and "
        "checks what it wrote.",
    )
    return StreamJob(modality.value, asset, f"{modality.value}_requests", job)


#: Modality -> its asset and job.
REQUEST_JOBS = {modality: _request_job(modality) for modality in Modality}


def _assessment_job(name: str, job: str, asset: str, description: str) -> StreamJob:
    definition = dg.define_asset_job(job, selection=dg.AssetSelection.assets(asset), description=description)
    return StreamJob(name, asset, asset, definition)


_or_drain = "of the days, or with mode: drain those that wait."
#: The jobs on the way from detections to assessed risks, in this order.
ASSESSMENT_JOBS = (
    _assessment_job(
        DETECTIONS,
        "make_assessment_tasks",
        "assessment_tasks",
        f"Makes tasks of the groups in the detections {_or_drain}",
    ),
    _assessment_job(ASSESSMENTS, "assess_risks", "risk_assessments", f"Has a model judge the tasks {_or_drain}"),
)

#: Name of a followed topic -> its asset and job.
STREAM_JOBS = {each.name: each for each in (*REQUEST_JOBS.values(), *ASSESSMENT_JOBS)}
