"""What went wrong with one request to a provider: with the key, with the provider, with the content, or with us.

Called by `calls` with whatever the `openai` client raises. No message has the API key in it, which providers repeat.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import TYPE_CHECKING

from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import ContentRefusedError, SettingsError, VectorizeError
from vectorize_pipelines.providers.keys import APIKeyInfo, KeyFailure, KeyRefused, ProviderFailed, RateLimited
from vectorize_pipelines.providers.models import RemoteModel

if TYPE_CHECKING:
    from openai import APIStatusError

#: Characters of what a provider says that an error repeats.
MESSAGE_CHARACTERS = 300
#: A shorter pause than this is none: whoever took it would only ask again and again.
SHORTEST_PAUSE_SECONDS = 0.05
#: Answers that say that the content of this request will not do, whoever asks.
_CONTENT_STATUSES = frozenset((400, 413, 415, 422))
#: 402: the account is empty until somebody pays.
_LIMIT_STATUSES = frozenset((402, 429))
#: Of those, what says that no content would do: OpenAI's codes, and the parameters that every request has.
_REQUEST_CODES = frozenset(
    ("model_not_found", "unknown_parameter", "unsupported_parameter", "unsupported_value", "unknown_model")
)
_REQUEST_PARAMETERS = frozenset(("model", "response_format", "max_tokens", "dimensions", "encoding_format"))
#: Answers below 500 after which the same request may succeed.
_PASSING_STATUSES = frozenset((408, 409, 425))
#: From here on a number is a time since 1970, in seconds, and from the second one on in milliseconds.
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e12
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class MalformedResponseError(Exception):
    """A response with status 200 that is not what the protocol says. The provider's, or a proxy's, fault."""


def failure_of(error: Exception, key: APIKeyInfo, model: RemoteModel) -> KeyFailure | VectorizeError:
    """Return what an error of a request means: a failure that may pass, or the error that the caller is to get."""
    from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

    if isinstance(error, TimeoutError | APITimeoutError):
        return ProviderFailed("no answer in time")
    if isinstance(error, APIStatusError):
        said = _said(error, key)
        if error.status_code in _CONTENT_STATUSES and _is_about_the_request(error):
            return _misconfigured(error.status_code, said, model)
        return _of_status(error.status_code, error.response.headers, said, model)
    if isinstance(error, APIConnectionError):
        cause = error.__cause__ or error
        return ProviderFailed(_shown(f"no connection: {type(cause).__name__}: {cause}", key))
    if isinstance(error, MalformedResponseError | APIError | JSONDecodeError | UnicodeDecodeError):
        return ProviderFailed(_shown(f"a response that is none: {error}", key))
    raise error


def _of_status(status: int, headers: Mapping[str, str], said: str, model: RemoteModel) -> KeyFailure | VectorizeError:
    if status in _LIMIT_STATUSES:
        asked = retry_after_seconds(headers)
        return RateLimited(None if asked is None or asked < SHORTEST_PAUSE_SECONDS else asked)
    if status in (401, 403):
        return KeyRefused(status, said)
    if status >= 500 or status in _PASSING_STATUSES:
        return ProviderFailed(f"HTTP {status}: {said}")
    if status in _CONTENT_STATUSES:
        return ContentRefusedError(f"{model.full_name} refuses the content (HTTP {status}): {said}")
    return _misconfigured(status, said, model)


def _misconfigured(status: int, said: str, model: RemoteModel) -> SettingsError:
    return SettingsError(
        f"the provider {model.provider} answers HTTP {status} to a request for {model.model}: {said}. Are the model's "
        "name and the provider's address right (providers.base_url, providers.base_urls), and does the model know what "
        "it is asked for (providers.answer_format, providers.embedding_dimensions)?"
    )


def _is_about_the_request(error: "APIStatusError") -> bool:
    """Return whether a 400 names what is the same in every request, which no other content would mend."""
    return error.code in _REQUEST_CODES or error.param in _REQUEST_PARAMETERS


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the pause that the headers of a 429 ask for, None where they name none.

    `headers` are found in any spelling. A time of day counts by the provider's own clock, which `Date` shows.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after")
    if asked is not None:
        seconds = _seconds(asked, headers)
        if seconds is not None:
            return seconds
    resets = [
        seconds
        for what in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{what}")) in (0.0, None)
        and (seconds := _seconds(headers.get(f"x-ratelimit-reset-{what}"), headers)) is not None
    ]
    if resets:
        return max(resets)
    for name in ("ratelimit-reset", "x-ratelimit-reset"):
        seconds = _seconds(headers.get(name), headers)
        if seconds is not None:
            return seconds
    return None


def _seconds(value: str | None, headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a header's value says: a number, `1m30.5s`, a time since 1970, or an HTTP date."""
    if value is None:
        return None
    number = _number(value)
    if number is None:
        parts = _DURATION.findall(value)
        if parts and "".join(map("".join, parts)) == value.strip():
            return sum(float(amount) * _UNITS[unit] for amount, unit in parts)
        at = _date(value)
        return None if at is None else max(0.0, at.timestamp() - _now(headers))
    if number < _EPOCH_SECONDS:
        return number
    return max(0.0, (number / 1000 if number >= _EPOCH_MILLISECONDS else number) - _now(headers))


def _now(headers: Mapping[str, str]) -> float:
    """Return the provider's time, or ours where it does not say."""
    said = _date(headers.get("date", ""))
    return (said or datetime.now().astimezone()).timestamp()


def _date(value: str) -> datetime | None:
    try:
        return parsedate_to_datetime(value)
    except ValueError:
        return None


def _number(value: str | None) -> float | None:
    """Return a number that is not negative."""
    return float(value) if value is not None and re.fullmatch(r"\s*\d+(\.\d*)?\s*", value, re.ASCII) else None


def _said(error: Exception, key: APIKeyInfo) -> str:
    """Return what a provider said of its error, without markup."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, Mapping) else None
    return _shown(re.sub(r"<[^>]*>", " ", str(message or error)), key)


def _shown(text: str, key: APIKeyInfo) -> str:
    return without_secrets(" ".join(text.split()), key.api_key.get_secret_value())[:MESSAGE_CHARACTERS]
