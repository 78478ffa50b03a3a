"""Settings of remote models: where they are asked, with which keys, how long, and what they cost."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from vectorize_pipelines.core.installation import project_folder
from vectorize_pipelines.settings.base import AbsolutePath, Names, Section, read_json

#: Of the addresses and the keys that name no provider.
DEFAULT_PROVIDER = "default"
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


class Price(BaseModel):
    """The price of a model, by a million tokens. Every price of an installation is in one currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_per_million: float = Field(ge=0, allow_inf_nan=False)
    output_per_million: float = Field(0.0, ge=0, allow_inf_nan=False)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of one call."""
        return (self.input_per_million * prompt_tokens + self.output_per_million * completion_tokens) / 1e6


class ProvidersSettings(Section):
    """Remote models that speak OpenAI's protocol, and the pool of API keys that they are asked with."""

    base_url: str | None = Field(
        None, description="address of the provider `default`: https://host/v1; null: OpenAI's own"
    )
    base_urls: Annotated[dict[str, str], BeforeValidator(read_json)] = Field(
        {}, description="addresses of further providers by name, as keys and `remote:PROVIDER/MODEL` name them"
    )
    model: str = Field("qwen-vl-max", min_length=1, description="the model that judges images")
    keys_file: AbsolutePath = Field(
        default_factory=lambda: project_folder() / "config" / "api_keys.yaml",
        description="the API keys and their limits; where the file is absent, no key is known",
    )
    prices: Annotated[dict[str, Price], BeforeValidator(read_json)] = Field(
        {},
        description="by model: `{input_per_million: 0.8, output_per_million: 2.0}`, in one currency for all; "
        "a model without a price costs nothing",
    )
    call_seconds: float = Field(60.0, gt=0, description="limit for one attempt of a call")
    deadline_seconds: float = Field(120.0, gt=0, description="limit for a call with everything that is repeated")
    max_concurrency: int = Field(512, ge=1, description="calls side by side in one process, at most")
    max_embedding_batch: int = Field(64, ge=1, description="items that one request for embeddings may have")
    max_embedding_tokens: int = Field(8000, ge=1, description="tokens that one request for embeddings may have")
    embedding_dimensions: Annotated[dict[str, Annotated[int, Field(ge=1)]], BeforeValidator(read_json)] = Field(
        {}, description="by model, where vectors shorter than its own are wanted; the model has to know them"
    )
    image_embedding_models: Names = Field(
        (), description="models that embed images too, each as `{image: BASE64}`, as Jina's interface has it"
    )
    answer_format: Literal["json_object", "json_schema", "text"] = Field(
        "json_object", description="`response_format` that answers of chat models are asked for in; text: none"
    )
    max_answer_tokens: int = Field(1000, ge=1, description="tokens that one answer of a chat model may have")
    image_tokens: int = Field(
        1500, ge=1, description="tokens that a picture is taken to cost until the provider has counted them"
    )
    answers_kept_seconds: float = Field(
        86_400.0, ge=0, description="so long the same content is not judged again; 0: it always is"
    )
    allow_plain_http: bool = Field(False, description="keys may be sent without TLS to hosts other than this one")

    def base_url_of(self, provider: str) -> str | None:
        """Return the address of a provider; None is OpenAI's own. Raises `KeyError` for one that is not known."""
        if provider in self.base_urls:
            return self.base_urls[provider]
        if provider == DEFAULT_PROVIDER:
            return self.base_url
        raise KeyError(provider)

    @field_validator("base_urls")
    @classmethod
    def _names(cls, urls: dict[str, str]) -> dict[str, str]:
        for name in urls:
            if not name or "/" in name or ":" in name:
                raise ValueError("names of providers have neither / nor : in them, as in remote:PROVIDER/MODEL")
        return urls

    @model_validator(mode="after")
    def _keys_travel_encrypted(self) -> Self:
        for name, url in ((DEFAULT_PROVIDER, self.base_url), *self.base_urls.items()):
            if url is not None:
                _check_url(name, url, self.allow_plain_http)
        return self


def _check_url(provider: str, url: str, plain: bool) -> None:
    """Raise `ValueError` for an address that is none, or that a key would travel to unencrypted."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"the address of the provider {provider} must be https://host/path, without query")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the address of the provider {provider} has a user in it: keys belong into keys_file")
    if parts.scheme == "http" and host not in _LOOPBACK and not plain:
        raise ValueError(f"the address of the provider {provider} is not encrypted: use https, or set allow_plain_http")
