"""Processes that embed by a remote model and are killed: only what they had in hand is paid for twice."""

import multiprocessing
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.providers.installation import SECRETS, installed
from tests.servers.provider import KeyLimits, ProviderServer
from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.configured import describe_options, lease_configured
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.settings import Settings

MODEL = "remote:embed"
TEXTS = [f"text number {n}" for n in range(240)]
#: Texts that are encoded together, in requests of so many.
TOGETHER, IN_REQUEST = 16, 4
#: Requests that have been answered when a process is killed.
KILLED_AFTER = (9, 31)
LOOK_SECONDS = 0.01


def embed(settings: Settings) -> None:
    """What the processes do that are killed."""
    spec = describe_model(MODEL, **describe_options(settings))
    encoder = ItemEncoder(
        spec.dimension,
        lambda: lease_configured(settings, MODEL),
        configured_reuse(settings, spec, force=False),
        most_rows=TOGETHER,
        seconds_per_batch=60.0,
    )
    for start in range(0, len(TEXTS), TOGETHER):
        items = [_item(text) for text in TEXTS[start : start + TOGETHER]]
        _, refused = encoder.encode(items, ["2026-11-30"] * len(items), Totals())
        assert not refused
    encoder.close()


def _item(text: str) -> Item:
    return Item("source", 0, Modality.TEXT, text, None, content_hash(text), datetime.now(UTC))


@pytest.mark.slow
def test_only_what_was_in_flight_is_asked_again(home: Path, provider: ProviderServer) -> None:
    provider.reset(keys={secret: KeyLimits() for secret in SECRETS.values()}, answer_seconds=0.05)
    settings = installed(home, provider, max_embedding_batch=IN_REQUEST)
    settings = settings.model_copy(update={"cache": settings.cache.model_copy(update={"enabled": "on"})})
    for number in KILLED_AFTER:
        process = multiprocessing.get_context("spawn").Process(target=embed, args=(settings,))
        process.start()
        while process.is_alive() and sum(provider.report().answered.values()) < number:
            time.sleep(LOOK_SECONDS)
        assert process.is_alive()
        process.kill()
        process.join()
    embed(settings)
    times = list(provider.report().answered.values())
    assert len(times) == 1 + len(TEXTS) / IN_REQUEST  # the dimension too
    again = sum(number - 1 for number in times)
    assert again <= len(KILLED_AFTER) * TOGETHER / IN_REQUEST
