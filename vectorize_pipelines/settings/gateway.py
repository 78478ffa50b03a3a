"""Settings of the HTTP server, `vectorize serve`."""

import re
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from vectorize_pipelines.settings.base import AbsolutePath, Names, Section


class GatewaySettings(Section):
    """The HTTP server: where it listens, who may call it, and what one caller may take of it."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen at; any but loopback needs a token")
    port: int = Field(8000, ge=0, le=65535, description="port to listen at; 0: any free one")
    metrics_port: int | None = Field(
        9090, ge=0, le=65535, description="port of Prometheus' metrics, at the same address; null: none"
    )
    dagster_url: str | None = Field(
        None, description="address of a Dagster web server to stand before; null: `vectorize serve` starts one"
    )
    tokens_file: AbsolutePath | None = Field(
        None, description="file of the hashed tokens; null: tokens.json in VECTORIZE_HOME"
    )
    tokens: SecretStr | None = Field(
        None, description="further tokens, hashed, as `vectorize tokens create --no-file` prints them, by commas"
    )
    hosts: Names = Field(
        (), description="names, with ports but for 80 and 443, under which browsers reach the server: docs.example:8443"
    )
    cors_origins: Names = Field((), description="origins whose pages may call the server, such as https://app.example")
    tls_certificate: AbsolutePath | None = Field(None, description="certificate chain in PEM; with `tls_key` it is TLS")
    tls_key: AbsolutePath | None = Field(None, description="private key in PEM")
    plain_http: bool = Field(
        False, description="tokens may be sent without TLS to an address that is not loopback, as behind a TLS proxy"
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="size of a request's body")
    max_requests: int = Field(512, ge=1, description="requests handled at the same time; others are told to come later")
    request_seconds: float = Field(60.0, gt=0, description="limit for receiving a body, and for handling a request")
    max_waiting_texts: int = Field(
        4096, ge=1, description="texts that wait for the encoder; with more, a request is told to come later"
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Also `*` is refused: with it, any page in a browser beside the server could call one that asks for no token.
        for name in names:
            if re.fullmatch(r"https?://[^/\s@*]+", name.lower()) is None:
                raise ValueError("must be origins such as https://app.example:8443, without a path, and not `*`")
        return tuple(name.lower() for name in names)

    @model_validator(mode="after")
    def _whole_pair(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both or neither")
        return self
