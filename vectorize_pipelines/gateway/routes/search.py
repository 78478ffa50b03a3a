"""Collections, search and single rows over HTTP, for those who may read.

A search goes to the model that filled the collection, as `vectorize search` does, and answers with the same hits.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import anyio.to_thread
from fastapi import APIRouter, Depends, Path, Request, Response

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.core.urls import is_data
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import CollectionNotFoundError, ItemError, UnknownModelError
from vectorize_pipelines.gateway.disconnects import while_connected
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.gateway.problems import FieldProblem, Problem, documented
from vectorize_pipelines.gateway.routes.search_models import (
    CollectionModel,
    CollectionsModel,
    RowModel,
    SearchAnswer,
    SearchRequest,
)
from vectorize_pipelines.gateway.services import Services, services_of
from vectorize_pipelines.gateway.stored import thumbnails
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.fetching import FetchPolicy, fetch
from vectorize_pipelines.stores.base import Collection, VectorStore
from vectorize_pipelines.stores.filters.comparisons import InvalidFilterError
from vectorize_pipelines.stores.filters.expressions import Equal, Filter
from vectorize_pipelines.stores.filters.json_form import filter_of_json
from vectorize_pipelines.stores.filters.parsing import parse_filter
from vectorize_pipelines.stores.hits import hits_as_json, json_text, records_as_json

if TYPE_CHECKING:
    import pyarrow as pa

    from vectorize_pipelines.encoders.base import Vectors

_JSON = "application/json"
_QUERIES = ("query", "image", "vector")
#: Before what the fingerprint in a row of a document says of how it was cut.
_CHUNKER = " chunker="
#: A thumbnail is a picture and nothing else, whatever a browser might take it for.
_PICTURE_HEADERS = {
    "Cache-Control": "private, max-age=600",
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A JPEG, no side longer than 256 pixels",
        "content": {thumbnails.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}

_NAMED_ERRORS = (HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)

CollectionName = Annotated[
    str, Path(pattern="^[a-z][a-z0-9_-]*$", max_length=255, description="a collection, or its physical name")
]
RowId = Annotated[str, Path(min_length=1, max_length=255, description="the `id` of a row")]
Shared = Annotated[Services, Depends(services_of)]

router = APIRouter(tags=["search"], dependencies=[Depends(requires(Scope.READ))])


@router.get("/collections", summary="List the collections")
async def list_collections(services: Shared) -> CollectionsModel:
    """The collections that can be searched, by name."""
    return CollectionsModel(collections=await services.store.call(_all_described))


@router.get("/collections/{name}", summary="Describe a collection", responses=documented(*_NAMED_ERRORS))
async def show_collection(name: CollectionName, services: Shared) -> CollectionModel:
    """One collection: its model, and how many rows it has."""
    return await services.store.call(lambda store: _described(store, store.collection(name)))


@router.post(
    "/collections/{name}/search",
    summary="Search a collection",
    response_model=SearchAnswer,
    responses=documented(*_NAMED_ERRORS, HTTPStatus.TOO_MANY_REQUESTS),
)
async def search(name: CollectionName, wanted: SearchRequest, request: Request, services: Shared) -> Response:
    """The rows nearest to a text, an image or a vector, best first, among those for which the filter holds."""
    _check_query(wanted)
    where = _filter_of(wanted.filter)
    answer = await while_connected(request, _searched(services, name, wanted, where))
    return Response(answer, media_type=_JSON)


@router.get(
    "/collections/{name}/rows/{row_id}",
    summary="Show a row",
    response_model=RowModel,
    responses=documented(*_NAMED_ERRORS),
)
async def show_row(name: CollectionName, row_id: RowId, services: Shared) -> Response:
    """One row with its lineage: the model, the way of cutting, the run, and its place in the source."""
    found, rows = await services.store.call(partial(_fetched, name, row_id, RECORD_FIELDS))
    return Response(json_text(_with_lineage(found, records_as_json(rows)[0])), media_type=_JSON)


@router.get(
    "/collections/{name}/rows/{row_id}/thumbnail",
    summary="Show the image of a row",
    response_class=Response,
    responses={**_PICTURE, **documented(*_NAMED_ERRORS)},
)
async def show_thumbnail(name: CollectionName, row_id: RowId, request: Request, services: Shared) -> Response:
    """A small picture of the image that the row was made from, where it still lies there, unchanged."""
    _, rows = await services.store.call(partial(_fetched, name, row_id, thumbnails.COLUMNS))
    (row,) = rows.to_pylist()
    if not _is_readable_image(row):
        raise Problem(HTTPStatus.NOT_FOUND, f"the row {row_id!r} is not of an image that can be read again")
    try:
        picture = await while_connected(request, services.thumbnails.of(row))
    except ItemError:  # says what lies where, which is not for everyone who may search
        gone = f"the image of the row {row_id!r} is not there any more, is another one by now, or may not be read"
        raise Problem(HTTPStatus.NOT_FOUND, gone) from None
    return Response(picture, media_type=thumbnails.MEDIA_TYPE, headers=_PICTURE_HEADERS)


# ---- queries


def _check_query(wanted: SearchRequest) -> None:
    given = [name for name in _QUERIES if getattr(wanted, name) is not None]
    if len(given) != 1:
        problem = f"give exactly one of query, image and vector; {' and '.join(given) or 'none of them'} was given"
        errors = [FieldProblem(field=name, problem=problem) for name in given or _QUERIES]
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, problem, errors=errors)
    if wanted.query is not None and not wanted.query.strip():
        raise _invalid("query", "there is nothing to search for")


def _filter_of(given: object) -> Filter | None:
    try:
        if given is None:
            return None
        return parse_filter(given) if isinstance(given, str) else filter_of_json(given)
    except InvalidFilterError as error:
        if isinstance(given, str) or not error.place:
            raise _invalid("filter", str(error)) from None
        raise _invalid(f"filter.{error.place}", error.problem) from None


async def _searched(services: Services, name: str, wanted: SearchRequest, where: Filter | None) -> str:
    found, vector = await _found_and_encoded(services, name, wanted)
    return await services.store.call(partial(_answer, found, vector, wanted.limit, where))


async def _found_and_encoded(services: Services, name: str, wanted: SearchRequest) -> "tuple[Collection, Vectors]":
    """Return the collection as it is now, and the vector by its model.

    A text is encoded by the model that the collection had at the last look while this one is under way.
    """
    known = services.store.last_seen(name)
    if known is None or wanted.query is None:
        found = await services.store.collection(name)
        return found, await _query_vector(services, found, wanted)
    encoding = asyncio.create_task(_query_vector(services, known, wanted))
    encoding.add_done_callback(lambda done: done.cancelled() or done.exception())  # may not be asked for
    try:
        found = await services.store.collection(name)
        if (found.model, found.dimension) == (known.model, known.dimension):
            return found, await encoding
    finally:
        encoding.cancel()
    return found, await _query_vector(services, found, wanted)


async def _query_vector(services: Services, found: Collection, wanted: SearchRequest) -> "Vectors":
    if wanted.vector is not None:
        return _checked_vector(found, wanted.vector)
    content: str | bytes = wanted.query or ""
    try:
        if wanted.image is not None:
            content = await anyio.to_thread.run_sync(partial(_image, services.settings, found, wanted.image))
        vectors, _ = await services.encoding.encode(found.model, [content], "query", found.dimension)
    except ItemError as error:
        raise _invalid("query" if wanted.image is None else "image", str(error)) from error
    except UnknownModelError as error:
        problem = f"the model that filled {found.name} cannot be used: {error}"
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, problem, headers={"Retry-After": "60"}) from error
    vector: Vectors = vectors[0]
    return vector


def _image(settings: Settings, found: Collection, uri: str) -> bytes:
    """The image's bytes, which the encoder's confined processes decode. Raises `ItemError` and `UnknownModelError`."""
    if not is_data(uri):
        raise _invalid("image", "is no data: URI, such as data:image/png;base64,…; no other address is read")
    takes = describe_model(found.model, dimension=found.dimension, **describe_options(settings)).modalities
    if Modality.IMAGE not in takes:
        kinds = " and ".join(sorted(takes))
        raise _invalid("image", f"{found.name} was filled by {found.model}, which takes {kinds}: search by a query")
    return fetch(uri, FetchPolicy.of(settings.uris), limit=settings.images.max_file_bytes)


def _checked_vector(found: Collection, given: Sequence[float]) -> "Vectors":
    import numpy as np

    if len(given) != found.dimension:
        raise _invalid("vector", f"has {len(given)} numbers; vectors of {found.name} have {found.dimension}")
    with np.errstate(over="ignore"):
        vector = np.asarray(given, dtype=np.float32)
        length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise _invalid("vector", f"has the length {length} in numbers of 32 bits: it points nowhere")
    return vector


def _invalid(field: str, problem: str) -> Problem:
    errors = [FieldProblem(field=field, problem=problem)]
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{field}: {problem}", errors=errors)


# ---- called in threads


def _all_described(store: VectorStore) -> list[CollectionModel]:
    described: list[CollectionModel] = []
    for collection in store.collections():
        with suppress(CollectionNotFoundError):  # dropped this very moment
            described.append(_described(store, collection))
    return described


def _described(store: VectorStore, collection: Collection) -> CollectionModel:
    physical = collection.physical
    return CollectionModel(
        name=collection.name,
        physical=physical,
        store=collection.store,
        model=collection.model,
        dimension=collection.dimension,
        rows=store.count(physical),
        has_images=store.count(physical, Equal("modality", Modality.IMAGE.value)) > 0,
    )


def _answer(found: Collection, vector: "Vectors", limit: int, where: Filter | None, store: VectorStore) -> str:
    """Search the physical collection: the alias may have been turned to another model since the query was encoded."""
    hits = hits_as_json(store.search(found.physical, vector, limit, where))
    return json_text({"collection": found.name, "model": found.model, "hits": hits})


def _fetched(name: str, row_id: str, columns: Sequence[str], store: VectorStore) -> "tuple[Collection, pa.Table]":
    """One row with these columns."""
    found = store.collection(name)
    rows = store.fetch(found.physical, Equal("id", row_id), columns)
    if not rows.num_rows:
        raise Problem(HTTPStatus.NOT_FOUND, f"{name} has no row {row_id!r}")
    return found, rows.slice(0, 1)


# ---- answers


def _with_lineage(found: Collection, row: Mapping[str, Any]) -> dict[str, Any]:
    here = f"/collections/{quote(found.name, safe='')}/rows/{quote(row['id'], safe='')}"
    return {
        **row,
        "collection": found.name,
        "physical": found.physical,
        "chunker": row["model"].partition(_CHUNKER)[2] or None,
        "run_url": f"{PATH_PREFIX}/runs/{quote(row['run_id'], safe='')}",
        "thumbnail_url": f"{here}/thumbnail" if _is_readable_image(row) else None,
    }


def _is_readable_image(row: Mapping[str, Any]) -> bool:
    """Return whether an image may lie at the row's URI; what came within a message lies in that, and is not read."""
    return row["modality"] == Modality.IMAGE and bool(row["uri"]) and not row["uri"].lower().startswith("kafka:")
