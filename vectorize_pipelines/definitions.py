"""The one `dg.Definitions`: wires, decides nothing."""

import dagster as dg

from vectorize_pipelines.assets import maintenance, reembedding
from vectorize_pipelines.assets.assessments import assessment_tasks_asset
from vectorize_pipelines.assets.checks import assessments as assessment_checks
from vectorize_pipelines.assets.checks import generations as generation_checks
from vectorize_pipelines.assets.checks import requests as request_checks
from vectorize_pipelines.assets.checks import vectors as checks
from vectorize_pipelines.assets.files import file_assets
from vectorize_pipelines.assets.requests import request_assets
from vectorize_pipelines.assets.risk import risk_assets
from vectorize_pipelines.assets.single_request import embed_request
from vectorize_pipelines.jobs import (
    ASSESSMENT_JOBS,
    REQUEST_JOBS,
    check_indexes,
    embed_corpus,
    embed_gallery,
    maintain_collections,
    reembed_collection,
    report_camera_risk,
    report_corpus,
)
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.keys import KeyPoolResource
from vectorize_pipelines.resources.language_model import LanguageModelResource
from vectorize_pipelines.resources.vector_store import VectorStoreIOManager, VectorStoreResource
from vectorize_pipelines.runs.executor import in_process_executor
from vectorize_pipelines.runs.retention import deliver_callbacks, retention
from vectorize_pipelines.schedules import schedules
from vectorize_pipelines.sensors.assessments import assessment_sensors
from vectorize_pipelines.sensors.files import CORPUS, GALLERY, new_files_sensor
from vectorize_pipelines.sensors.lost_runs import lost_runs_sensor
from vectorize_pipelines.sensors.requests import request_sensors
from vectorize_pipelines.sensors.run_failures import cancelled_requests, failed_requests, failed_runs
from vectorize_pipelines.settings import load_settings

_settings = load_settings()
_encoder = EncoderResource()
_vector_store = VectorStoreResource()

defs = dg.Definitions(
    assets=[
        *file_assets(_settings),
        *request_assets(_settings),
        maintenance.maintained_collections_asset(_settings),
        reembedding.reembedding_asset(_settings),
        assessment_tasks_asset(_settings),
        *risk_assets(_settings),
    ],
    asset_checks=[
        *checks.CHECKS,
        *request_checks.CHECKS,
        *generation_checks.CHECKS,
        *assessment_checks.CHECKS,
        *maintenance.CHECKS,
    ],
    jobs=[
        embed_corpus,
        embed_gallery,
        report_corpus,
        report_camera_risk,
        *(each.job for each in REQUEST_JOBS.values()),
        *(each.job for each in ASSESSMENT_JOBS),
        embed_request,
        reembed_collection,
        reembedding.drop_old_generations,
        maintain_collections,
        check_indexes,
        retention,
        deliver_callbacks,
    ],
    schedules=schedules(_settings),
    sensors=[
        new_files_sensor(CORPUS, _settings),
        new_files_sensor(GALLERY, _settings),
        *request_sensors(_settings),
        *assessment_sensors(_settings),
        lost_runs_sensor(_settings),
        failed_runs,
        failed_requests,
        cancelled_requests,
    ],
    resources={
        "encoder": _encoder,
        "keys": KeyPoolResource(),
        "vector_store": _vector_store,
        "language_model": LanguageModelResource(),
        "vector_store_io_manager": VectorStoreIOManager(vector_store=_vector_store, encoder=_encoder),
    },
    # A process of its own for every step would load the model anew for each.
    executor=in_process_executor,
)
