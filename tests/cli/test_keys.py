"""`vectorize keys` from outside: what it prints, and with which exit code."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import SecretStr

from tests.commands import Vectorize
from vectorize_pipelines.providers.connections import OPENAI_URL, Connections
from vectorize_pipelines.providers.key_pool import RateLimited, create_key_pool_from_config
from vectorize_pipelines.settings import load_settings

SECRETS = ("sk-hush-good", "sk-hush-bad", "sk-hush-odd")
FILE = """
keys:
  - {api_key: sk-hush-good, name: good, rpm_limit: 10, tpm_limit: 1000}
  - {api_key: sk-hush-bad, name: bad}
  - {api_key: sk-hush-odd, name: odd, provider: other}
"""


@pytest.fixture(autouse=True)
def _keys_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "api_keys.yaml"
    file.write_text(FILE)
    monkeypatch.setenv("VECTORIZE_PROVIDERS__KEYS_FILE", str(file))


class _Provider(BaseHTTPRequestHandler):
    """Lists models for one key, refuses another with the key in its answer, and fails for a third."""

    def do_GET(self) -> None:
        key = self.headers["Authorization"].removeprefix("Bearer ")
        answers = {
            "sk-hush-good": (200, {"object": "list", "data": []}),
            "sk-hush-bad": (401, {"error": {"message": f"Incorrect API key: {key}"}}),
        }
        status, body = answers.get(key, (503, {"error": {"message": "overloaded"}}))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A provider at the address of `default` and of `other`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Provider) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        monkeypatch.setenv("VECTORIZE_PROVIDERS__BASE_URL", url)
        monkeypatch.setenv("VECTORIZE_PROVIDERS__BASE_URLS", json.dumps({"other": url}))
        yield
        server.shutdown()


def test_the_use_of_keys_is_listed_by_name(vectorize_here: Vectorize) -> None:
    async def use() -> None:
        pool = create_key_pool_from_config(settings=load_settings())
        for _ in range(2):
            key = await pool.acquire_key(provider="default", tokens=30)
            failure = RateLimited(300.0) if key.name == "bad" else None
            await pool.release_key(key, failure is None, tokens=40, failure=failure)
        await pool.close()

    asyncio.run(use())
    rows = {row["name"]: row for row in vectorize_here("keys", "list", "--json").json}
    assert list(rows) == ["good", "bad", "odd"]
    good = rows["good"]
    assert (good["requests_last_minute"], good["rpm_limit"], good["tokens_last_minute"]) == (1, 10, 40)
    assert (rows["bad"]["state"], rows["odd"]["state"], rows["odd"]["provider"]) == ("cooling", "available", "other")
    assert rows["bad"]["next_available_seconds"] > 200
    printed = vectorize_here("keys", "list")
    assert "1/10" in printed.out
    assert "40/1000" in printed.out
    assert not any(secret in printed.out + json.dumps(rows) for secret in SECRETS)


def test_keys_are_disabled_and_enabled_for_all(vectorize_here: Vectorize) -> None:
    assert vectorize_here("keys", "disable", "good").out == "good is disabled\n"
    (row,) = [row for row in vectorize_here("keys", "list", "--json").json if row["name"] == "good"]
    assert (row["state"], row["disabled_reason"]) == ("disabled", "disabled by `vectorize keys disable`")
    assert vectorize_here("keys", "enable", "good", "--json").json == {"enabled": "good"}
    (row,) = [row for row in vectorize_here("keys", "list", "--json").json if row["name"] == "good"]
    assert row["state"] == "available"
    unknown = vectorize_here("keys", "enable", "nobody")
    assert unknown.code == 2
    assert "has no API key with the name nobody; it has: bad, good, odd" in unknown.err


def test_a_key_that_the_file_disables_is_not_enabled_by_command(vectorize_here: Vectorize, tmp_path: Path) -> None:
    (tmp_path / "api_keys.yaml").write_text("keys: [{api_key: sk-hush-good, name: good, enabled: false}]")
    refused = vectorize_here("keys", "enable", "good")
    assert refused.code == 2
    assert "set `enabled: true` there" in refused.err


def test_providers_are_asked_about_keys(vectorize_here: Vectorize, provider: None) -> None:
    done = vectorize_here("keys", "check", "--json")
    assert done.code == 1
    assert done.json == [
        {"name": "good", "verdict": "accepted", "detail": ""},
        {"name": "bad", "verdict": "refused", "detail": "401 Incorrect API key: ***"},
        {"name": "odd", "verdict": "unknown", "detail": "503 overloaded"},
    ]
    printed = vectorize_here("keys", "check", "good")
    assert (printed.code, printed.out.split()) == (0, ["good", "accepted"])
    assert vectorize_here("keys", "check", "nobody").code == 2


class _Spy(BaseHTTPRequestHandler):
    """Refuses keys at the end of a long message, sends those elsewhere who are not refused, and remembers requests."""

    asked: ClassVar[list[tuple[str, Mapping[str, str]]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, dict(self.headers)))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        if key.startswith("sk-hush-bad"):
            content = json.dumps({"error": {"message": "x" * 190 + key}}).encode()
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
        else:
            content = b""
            self.send_response(307)
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_no_part_of_a_key_is_printed_or_sent_elsewhere(
    vectorize_here: Vectorize, provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "somebody-else")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "something-else")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Spy) as spy:
        threading.Thread(target=spy.serve_forever, daemon=True).start()
        monkeypatch.setenv("VECTORIZE_PROVIDERS__BASE_URL", f"http://127.0.0.1:{spy.server_port}/v1")
        done = vectorize_here("keys", "check", "good", "bad", "--json")
        spy.shutdown()
    assert {each["name"]: each["verdict"] for each in done.json} == {"good": "unknown", "bad": "refused"}
    assert "sk-" not in done.out + done.err
    assert [path for path, _ in _Spy.asked] == ["/v1/models"] * 2
    assert not any("else" in value for _, headers in _Spy.asked for value in headers.values())


def test_the_address_in_the_environment_of_openai_is_not_that_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://somebody.else/v1")

    async def go() -> str:
        connections = Connections(load_settings().providers, 1.0)
        try:
            return str(connections.client("default", SecretStr("sk-hush")).base_url)
        finally:
            await connections.close()

    assert asyncio.run(go()) == f"{OPENAI_URL}/"


def test_a_provider_without_an_address_is_said(vectorize_here: Vectorize) -> None:
    done = vectorize_here("keys", "check", "odd")
    assert done.code == 1
    assert "providers.base_urls has no address of the provider other" in done.out


def test_a_file_that_is_wrong_is_said_without_a_key(vectorize_here: Vectorize, tmp_path: Path, home: Path) -> None:
    (tmp_path / "api_keys.yaml").write_text("keys: [{api_key: sk-hush-good, qps: 3}]")
    done = vectorize_here("keys", "list")
    assert done.code == 2
    assert "keys.0.qps: Extra inputs are not permitted" in done.err
    assert "hush" not in done.err
