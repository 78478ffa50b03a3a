"""The asset of documents with a remote model: its partitions say what the provider counted."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.assets.materializing import run
from tests.instances import installed_instance
from tests.providers.installation import installed, serve_keys
from tests.servers.provider import Fault, ProviderServer
from tests.small_corpus import DAYS

KEY = dg.AssetKey("corpus_embeddings")


@pytest.fixture
def instance(
    home: Path, corpus: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch, shared_parsers: None
) -> Iterator[dg.DagsterInstance]:
    serve_keys(provider)
    monkeypatch.setenv("VECTORIZE_MODELS__TEXT", "remote:embed")
    monkeypatch.setenv("VECTORIZE_ENCODER__CACHE_DIRECTORY", str(home / "models"))
    monkeypatch.setenv("VECTORIZE_PROVIDERS__BASE_URL", provider.url)
    monkeypatch.setenv("VECTORIZE_PROVIDERS__KEYS_FILE", str(installed(home, provider).providers.keys_file))
    monkeypatch.setenv("VECTORIZE_PROVIDERS__PRICES", json.dumps({"embed": {"input_per_million": 1000}}))
    with installed_instance(monkeypatch) as instance:
        yield instance


@pytest.mark.slow
def test_tokens_and_cost_stand_in_the_partitions(instance: dg.DagsterInstance, provider: ProviderServer) -> None:
    first, last = DAYS[0].isoformat(), DAYS[2].isoformat()
    provider.change(faults=[Fault("rate_limited", every=2, count=2, seconds=0.1)])
    assert run(instance, first=first, last=last).success
    records = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=KEY), limit=3).records
    figures = [record.asset_materialization.metadata for record in records if record.asset_materialization]
    assert [each["encoded"].value for each in figures] == [1, 1, 1]
    tokens = [int(str(each["tokens"].value)) for each in figures]
    assert all(number > 2 for number in tokens)
    assert [each["cost"].value for each in figures] == pytest.approx([number * 0.001 for number in tokens])
    assert all(str(each["engine"].value).startswith("remote on") for each in figures)
