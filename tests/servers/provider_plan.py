"""How the provider of the tests behaves: limits by key, faults, the time that it takes, its clock."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.servers.provider_limits import KeyLimits


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with some requests.

    kind      rate_limited (429), server_error (500), bad_gateway (502 in HTML), unauthorized (401), forbidden (403),
              refused (400 for its content), unknown_parameter (400), not_found (404), stall (no answer), cut (half an
              answer), html, empty (a page, or an empty object, with status 200), no_json, other_schema, surrogate (of
              the model's answer), no_text (a refusal that is an object), no_usage (numbers of tokens that are none)
    count     so many requests meet it, None: all from now on; of those that it fits
    every     each so-many-th of those that it fits
    key       only requests with this API key
    path      only `chat` or `embeddings`
    contains  only requests with this text in their body
    seconds   of a stall; of a 429 until it may be repeated
    header    where a 429 says so: retry-after, retry-after-ms, date (an HTTP date by the server's clock), reset
              (x-ratelimit-reset-requests), or none
    """

    kind: str
    count: int | None = 1
    every: int = 1
    key: str | None = None
    path: str | None = None
    contains: str | None = None
    seconds: float = 1.0
    header: str = "retry-after"


@dataclass(frozen=True)
class Plan:
    """How the server behaves.

    keys               API key -> its limits; a key that is not there is refused with 401
    answer_seconds     time until an answer
    second, minute     length of the two windows
    clock_skew_seconds the server's clock is so much ahead
    completion_tokens  of every answer
    max_inputs         of one request for embeddings; more are refused with 400
    max_input_tokens   of one request for embeddings
    dimensions         model -> length of its vectors; of others `dimension`
    """

    keys: Mapping[str, KeyLimits] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    answer_seconds: float = 0.0
    second: float = 1.0
    minute: float = 60.0
    clock_skew_seconds: float = 0.0
    completion_tokens: int = 50
    max_inputs: int = 2048
    max_input_tokens: int = 300_000
    dimensions: Mapping[str, int] = field(default_factory=dict)
    dimension: int = 32


def plan_from(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return parts of a plan, as JSON has them, as arguments of `Plan`."""
    parts = dict(content)
    if "keys" in parts:
        parts["keys"] = {key: KeyLimits(**limits) for key, limits in parts["keys"].items()}
    if "faults" in parts:
        parts["faults"] = tuple(Fault(**fault) for fault in parts["faults"])
    return parts


def plan_as_json(parts: Mapping[str, Any]) -> str:
    """Return arguments of `Plan` as `plan_from` reads them."""
    return json.dumps(parts, default=asdict)
