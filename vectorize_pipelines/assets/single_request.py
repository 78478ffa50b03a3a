"""The job `embed_request`: one request without a topic, for who speaks GraphQL to Dagster and nothing else.

Its config is the JSON that a message would have. The run's status is the request's, to cancel it is to terminate the
run, and its rows are those that a message would leave.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import dagster as dg

from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.jobs import REQUEST_JOBS
from vectorize_pipelines.pipeline.generations.writer import GenerationWriter
from vectorize_pipelines.pipeline.requests.runs import abandon_single, open_single
from vectorize_pipelines.pipeline.requests.single import SingleRequest
from vectorize_pipelines.pipeline.totals import Failure
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import VectorStoreResource, write_stream
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.runs.tags import REQUEST_ID_TAG
from vectorize_pipelines.settings import Settings, load_settings


@dg.op(
    name="request",
    description="Embeds the request that is its config.",
    config_schema=dict,
    out=dg.Out(dg.Nothing),
    pool="single_requests",
)
def request(context: dg.OpExecutionContext, encoder: EncoderResource, vector_store: VectorStoreResource) -> None:
    """Fails the run where the request fails; it is not tried again by itself."""
    with translate_errors():
        settings = load_settings()
        content: dict[str, Any] = dict(context.op_config)
        single = SingleRequest.of(content, context.run_id, context.run.tags, settings.kafka.metadata_limits)
        task_id = single.request.task_id
        if context.run.tags.get(REQUEST_ID_TAG) != task_id:
            context.instance.add_run_tags(context.run_id, {REQUEST_ID_TAG: task_id})
        try:
            refused = _embed(context, settings, single, encoder, vector_store)
        except dg.DagsterExecutionInterruptedError:
            abandon_single(settings, single, None)
            raise
        except Exception as error:  # also one that nobody foresaw: whoever asked waits for an answer
            abandon_single(settings, single, error)
            raise
        for failure in refused:
            raise RequestFailedError(f"{failure.error_class}: {failure.message}")


def _embed(
    context: dg.OpExecutionContext,
    settings: Settings,
    single: SingleRequest,
    encoder: EncoderResource,
    vector_store: VectorStoreResource,
) -> Sequence[Failure]:
    """Embed the request; return the reason where it cannot be embedded for one of its own."""
    store = vector_store.open()
    writer = GenerationWriter(settings, store, encoder.lease)
    with closing(writer), open_single(settings, single, store, encoder.lease) as stream:
        result = write_stream(writer, stream)
    asset = dg.AssetKey(REQUEST_JOBS[single.modality].asset)
    for day in sorted(stream.touched):
        metadata = {**result.metadata(stream, day), REQUEST_ID_TAG: single.request.task_id}
        context.log_event(dg.AssetMaterialization(asset, partition=day, metadata=metadata))
    return stream.failures


class RequestFailedError(ItemError):
    """The request of a run cannot be embedded; the message names the reason's class."""


@dg.job(
    description="Embeds one request, given as config in the JSON of a message; its task_id is the run's tag "
    f"{REQUEST_ID_TAG}.",
)
def embed_request() -> None:
    """One op: the request."""
    request()
