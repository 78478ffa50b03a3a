"""Embeddings and models over HTTP, as clients of OpenAI speak it; its errors too have OpenAI's form.

What differs: `input_type` says whether texts are documents or queries, for models that put a prompt in front of them;
texts longer than the model takes are truncated, as everywhere here, and `usage` says by how much; and token arrays are
refused.
"""

import base64
import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from vectorize_pipelines.encoders.base import Purpose, TokenCount, Vectors
from vectorize_pipelines.errors import ItemError, UnknownModelError, VectorizeError
from vectorize_pipelines.gateway.disconnects import while_connected
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.encoding.lane import DimensionError
from vectorize_pipelines.gateway.problems import Problem, problem_of
from vectorize_pipelines.gateway.services import Services, services_of

logger = logging.getLogger(__name__)

#: As many as OpenAI takes.
MOST_INPUTS = 2048

#: Numbers in an answer from which on writing it takes longer than having a thread do so.
MANY_NUMBERS = 32_768

LONGEST_NAME = 500

_OWNER = "vectorize-pipelines"

#: OpenAI's names of errors; others are `server_error` from 500 on, and `invalid_request_error` below.
_TYPES = {HTTPStatus.FORBIDDEN: "permission_error", HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}
_CODES = {HTTPStatus.NOT_FOUND: "model_not_found", HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded"}


class ErrorDetail(BaseModel):
    """The reason of an error. `param`: the field of the request that it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of an error, as OpenAI has it."""

    error: ErrorDetail


def _texts(given: object) -> object:
    """Return `input` as a list of texts. Raises `ValueError` with what is wrong, for the client."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise ValueError("give a text or a list of texts")
    if len(texts) > MOST_INPUTS:
        raise ValueError(f"{len(texts)} texts are more than {MOST_INPUTS}: send them in several requests")
    for position, text in enumerate(texts):
        if isinstance(text, int | list):
            raise ValueError(  # noqa: TRY004 (pydantic lets a TypeError pass)
                "token arrays are not taken, each model has tokens of its own: send the texts themselves"
            )
        if not isinstance(text, str):
            raise ValueError(f"[{position}] is not a text")  # noqa: TRY004
        if not text:
            raise ValueError("a text is empty" if isinstance(given, str) else f"[{position}] is empty")
    return texts


_Text = Annotated[str, Field(min_length=1)]
_Input = _Text | Annotated[list[_Text], Field(min_length=1, max_length=MOST_INPUTS)]


class EmbeddingRequest(BaseModel):
    """Texts to embed, and how."""

    input: Annotated[list[str], BeforeValidator(_texts, json_schema_input_type=_Input)] = Field(
        description="a text, or a list of texts; none of them empty"
    )
    model: str = Field(min_length=1, max_length=LONGEST_NAME, description="one of `GET /v1/models`")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="lists of numbers, or base64 of little-endian float32"
    )
    dimensions: int | None = Field(
        None, ge=1, description="vectors are cut to so many dimensions and scaled to unit length; null: the model's own"
    )
    input_type: Purpose = Field(
        "document", description="query: the model's prompt for queries, where it has one, is put in front"
    )
    user: str | None = Field(None, description="ignored")


class Embedding(BaseModel):
    """The vector of a text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model saw, special tokens included; OpenAI's, and what this server left out."""

    prompt_tokens: int
    total_tokens: int
    truncated_tokens: int = Field(description="those left out of texts that are longer than the model takes")


class EmbeddingList(BaseModel):
    """A vector for each text, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A model that is served. `created` is not known."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = _OWNER


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route, which answers errors itself."""
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await answer(request)
            except RequestValidationError as error:
                return _invalid(error)
            except HTTPException as error:
                return _error(HTTPStatus(error.status_code), error.detail, headers=error.headers)
            except Problem as problem:
                return _error(problem.status, problem.detail, headers=problem.headers)
            except VectorizeError as error:
                return _failed(request, error)

        return handler


def _answers(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: these errors in OpenAI's form; those of the layers in front have that of problems."""
    return {int(status): {"model": ErrorAnswer, "description": status.phrase} for status in statuses}


router = APIRouter(
    prefix="/v1", tags=["OpenAI's"], route_class=OpenAIRoute, dependencies=[Depends(requires(Scope.READ))]
)

_Services = Annotated[Services, Depends(services_of)]


@router.post(
    "/embeddings",
    summary="Embed texts",
    response_model=EmbeddingList,
    responses=_answers(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def create_embeddings(asked: EmbeddingRequest, request: Request, services: _Services) -> Response:
    """Return a vector for each text. Requests of many clients are encoded together; small ones go first."""
    model = await services.models.resolve(asked.model)
    work = services.encoding.encode(model, asked.input, asked.input_type, asked.dimensions)
    vectors, tokens = await while_connected(request, work)
    write = _base64_rows if asked.encoding_format == "base64" else _float_rows
    rows = write(vectors) if vectors.size < MANY_NUMBERS else await to_thread.run_sync(write, vectors)
    return Response(_body(rows, model, tokens), media_type="application/json")


@router.get(
    "/models",
    summary="List the models",
    responses=_answers(HTTPStatus.FORBIDDEN, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def list_models(services: _Services) -> ModelList:
    """Return the models that may be named: those of the settings, of `kafka.allowed_models` and of collections."""
    return ModelList(data=[Model(id=name) for name in await services.models.names()])


@router.get(
    "/models/{model:path}",
    summary="Look a model up",
    responses=_answers(
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def find_model(model: str, services: _Services) -> Model:
    """Return a model under the name that the operator gave it, by any of its names."""
    return Model(id=await services.models.resolve(model))


def _base64_rows(vectors: Vectors) -> list[bytes]:
    return [b'"%b"' % base64.b64encode(row.tobytes()) for row in vectors.astype("<f4", copy=False)]


def _float_rows(vectors: Vectors) -> list[bytes]:
    return [to_json(row) for row in vectors.tolist()]


def _body(rows: list[bytes], model: str, tokens: Sequence[TokenCount]) -> bytes:
    """The JSON of an `EmbeddingList`, whose vectors are written already: pydantic would check each number of them."""
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, row) for index, row in enumerate(rows)
    )
    seen = sum(count.seen for count in tokens)
    usage = {"prompt_tokens": seen, "total_tokens": seen, "truncated_tokens": sum(count.cut for count in tokens)}
    rest = json.dumps({"model": model, "usage": usage})
    return b'{"object":"list","data":[%b],%b' % (data, rest.encode()[1:])


def _invalid(error: RequestValidationError) -> Response:
    """The answer to a request that is not as the schema says: the first thing that is wrong with it."""
    first = error.errors()[0]
    place = first["loc"][1] if len(first["loc"]) > 1 else None
    field = place if isinstance(place, str) else None
    problem = str(first["msg"]).removeprefix("Value error, ")
    return _error(HTTPStatus.BAD_REQUEST, f"{field}: {problem}" if field else problem, param=field)


def _failed(request: Request, error: VectorizeError) -> Response:
    """The answer that an error of ours becomes; what cannot be embedded is a bad request here."""
    problem = problem_of(error)
    if problem.status is HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    if isinstance(error, ItemError):
        field = "dimensions" if isinstance(error, DimensionError) else "input"
        return _error(HTTPStatus.BAD_REQUEST, f"{field}: {error}", param=field)
    param = "model" if isinstance(error, UnknownModelError) else None
    return _error(problem.status, problem.detail, param=param, headers=problem.headers)


def _error(
    status: HTTPStatus, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    fallback = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    detail = ErrorDetail(message=message, type=_TYPES.get(status, fallback), param=param, code=_CODES.get(status))
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), status, headers)
