"""A whole server, as `vectorize serve` starts it, on an installation of a test's own with small stand-ins beside it.

All layers are there, the store (LanceDB) and the database (SQLite); no Kafka. In the place of Dagster and of the models
stand servers and encoders that answer at once.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.gateway.dagster.upstream import Upstream, standing_in
from tests.gateway.encoding.held_encoder import HeldEncoder, Models
from tests.gateway.installations import ledger_of
from tests.gateway.running import running, serving, until
from vectorize_pipelines.gateway import services
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.tokens import Scope, Tokens, TokensFile
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.settings.models import DEFAULT_IMAGE_MODEL
from vectorize_pipelines.state.ledger import RequestLedger

#: What the models of the settings are served by.
TEXT_ENCODER, IMAGE_ENCODER = HeldEncoder(DEFAULT_TEXT_MODEL), HeldEncoder(DEFAULT_IMAGE_MODEL, images=True)


@dataclass(frozen=True)
class Whole:
    """The server, what stands in Dagster's place, and a token of each scope (none where nobody is asked for one)."""

    url: str
    settings: Settings
    ledger: RequestLedger
    dagster: Upstream
    tokens: Mapping[Scope, str]

    def as_caller(self, scope: Scope = Scope.ADMIN) -> dict[str, str]:
        """The headers by which the owner of a token is known."""
        return {"Authorization": f"Bearer {self.tokens[scope]}"}


@contextmanager
def whole_server(
    folder: Path,
    scopes: Iterable[Scope] = Scope,
    metrics_port: socket.socket | None = None,
    options: Mapping[str, Any] | None = None,
    **gateway: Any,
) -> Iterator[Whole]:
    """Serve an installation below `folder`. `gateway` are settings of the HTTP server, `options` some of uvicorn."""
    home = folder / "home"
    home.mkdir()
    settings = load_settings({"VECTORIZE_HOME": str(home)}, gateway=gateway)
    file, dagster, models = TokensFile.of(settings), standing_in(), Models(TEXT_ENCODER, IMAGE_ENCODER)
    tokens = {scope: file.add(scope.value, [scope]) for scope in scopes}
    with (
        pytest.MonkeyPatch.context() as patch,
        ledger_of(settings) as ledger,
        running(dagster) as dagster_url,
    ):
        patch.setattr(services, "lease_configured", lambda settings, model: models.lease(model))
        with serving(
            lambda address: create_app(
                settings, DagsterAddress(dagster_url), Tokens.open(settings), address, metrics_port=metrics_port
            ),
            settings.gateway,
            **(options or {}),
        ) as url:
            whole = Whole(url, settings, ledger, dagster, tokens)
            headers = whole.as_caller(Scope.READ) if tokens else {}
            # To open the store takes a moment, in which the server calls itself unhealthy.
            until(lambda: requests.get(f"{url}/health", headers=headers, timeout=60).ok)
            yield whole
