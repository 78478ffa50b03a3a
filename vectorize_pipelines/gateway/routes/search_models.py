"""Requests and answers of the routes of collections and of search, as OpenAPI describes them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.stores.filters.parsing import MAX_CHARACTERS

MAX_QUERY_CHARACTERS = 65_536
MAX_DIMENSION = 65_536

_FILTER_SCHEMA = {
    "description": "Only rows for which it holds: an expression, as `vectorize search --filter` takes it, or an object",
    "anyOf": [
        {
            "type": "string",
            "maxLength": MAX_CHARACTERS,
            "description": "comparisons (=, !=, <, <=, >, >=, in, prefix, exists) joined by and, or, not, parentheses",
            "examples": ['language = en and (year >= 1970 or author in ("Le Guin", Lem))'],
        },
        {
            "type": "object",
            "description": "`and`, `or` or `not` alone; or `field` with one of `equals`, `in`, `range`, `prefix`, "
            "`exists`",
            "properties": {
                "and": {"type": "array", "items": {"type": "object"}},
                "or": {"type": "array", "items": {"type": "object"}},
                "not": {"type": "object"},
                "field": {"type": "string", "minLength": 1},
                "equals": {"type": ["string", "number", "boolean"]},
                "in": {"type": "array", "items": {"type": ["string", "number", "boolean"]}},
                "range": {
                    "type": "object",
                    "properties": {bound: {"type": ["string", "number"]} for bound in ("gt", "gte", "lt", "lte")},
                    "minProperties": 1,
                    "maxProperties": 2,
                    "additionalProperties": False,
                },
                "prefix": {"type": "string"},
                "exists": {"type": "boolean"},
            },
            "minProperties": 1,
            "maxProperties": 2,
            "additionalProperties": False,
            "examples": [{"and": [{"field": "language", "equals": "en"}, {"field": "year", "range": {"gte": 1970}}]}],
        },
        {"type": "null"},
    ],
}


class CollectionModel(BaseModel):
    """A collection.

    name        as users name it; physical: the name in the store, which carries the model
    store       the store's kind
    model       the model that fills it, and that queries are encoded with
    dimension   of its vectors
    has_images  some of its rows are of images
    """

    name: str
    physical: str
    store: str
    model: str
    dimension: int
    rows: int
    has_images: bool


class CollectionsModel(BaseModel):
    """The collections, by name."""

    collections: list[CollectionModel]


class SearchRequest(BaseModel):
    """A search by exactly one of `query`, `image` and `vector`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)] | None = Field(None, description="a text")
    image: str | None = Field(
        None,
        description="an image itself, as a data: URI, where the collection's model takes images",
        examples=["data:image/png;base64,iVBORw0KGgo…"],
    )
    vector: (
        Annotated[
            list[Annotated[float, Field(allow_inf_nan=False)]],
            Field(fail_fast=True, min_length=1, max_length=MAX_DIMENSION),
        ]
        | None
    ) = Field(None, description="a vector of the collection's model and dimension")
    limit: int = Field(10, ge=1, le=1000, description="hits at most")
    filter: Annotated[Any, WithJsonSchema(_FILTER_SCHEMA)] = None


class RecordModel(BaseModel):
    """A row: the text, or the image, that was embedded, and where it stands in its source.

    source_id     the request, or the file
    item_index    place in a batch request; number of the passage in a document
    page, start, end  where it stands in a document; start and end in characters of the extracted text
    model         fingerprint of the model, and of the way of cutting
    occurred_at   the item's own time; partition is its day
    run_id        the run that wrote it
    metadata      the user's own
    """

    id: str
    source_id: str
    item_index: int
    modality: Modality
    text: str | None
    uri: str | None
    page: int | None
    start: int | None
    end: int | None
    content_hash: str
    model: str
    occurred_at: datetime
    partition: str
    run_id: str
    embedded_at: datetime
    metadata: dict[str, Any]


class HitModel(RecordModel):
    """A row that was found. score: higher is nearer; the cosine similarity, for normalised vectors."""

    score: float


class SearchAnswer(BaseModel):
    """The hits, best first; model: the one that the query was encoded with."""

    collection: str
    model: str
    hits: list[HitModel]


class RowModel(RecordModel):
    """A row with its lineage.

    chunker        how its document was cut; null for what was not
    run_url        path of its run in Dagster's UI
    thumbnail_url  path of a small picture; null where the row is not of an image that could be read again
    """

    collection: str
    physical: str
    chunker: str | None
    run_url: str
    thumbnail_url: str | None
