"""A collection by a remote model as users have it: ingested, searched, and embedded again from it and to it."""

from pathlib import Path

import pytest

from tests.commands import Vectorize
from tests.providers.installation import installed, serve_keys
from tests.servers.provider import Fault, ProviderServer

LOCAL = "sentence-transformers/all-MiniLM-L6-v2"
REMOTE = "remote:embed-for-commands"
TEXT = "The supply boat lands on Tuesdays."


@pytest.mark.slow
def test_from_a_remote_model_to_one_of_this_machine_and_back(
    vectorize_here: Vectorize, home: Path, provider: ProviderServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_keys(provider, faults=[Fault("rate_limited", every=2, count=1, seconds=0.1)])
    monkeypatch.setenv("VECTORIZE_MODELS__TEXT", REMOTE)
    monkeypatch.setenv("VECTORIZE_DOCUMENTS__CHUNK_TOKENS", "128")
    monkeypatch.setenv("VECTORIZE_PROVIDERS__BASE_URL", provider.url)
    monkeypatch.setenv("VECTORIZE_PROVIDERS__KEYS_FILE", str(installed(home, provider).providers.keys_file))
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "lamp.md").write_text("The lamp of the lighthouse burns paraffin.")
    (folder / "boat.md").write_text(TEXT)

    done = vectorize_here("ingest", folder, "--json")
    assert (done.code, done.json["encoded"]) == (0, 2), done.err
    (hit,) = vectorize_here("search", TEXT, "--limit", 1, "--json").json
    assert "boat" in hit["source_id"]
    assert hit["score"] == pytest.approx(1.0, abs=1e-5)
    assert hit["model"].startswith(f"{REMOTE}@")
    for model, before in ((LOCAL, "corpus__remote-embed-for-commands-32"), (REMOTE, "")):
        done = vectorize_here("collections", "reembed", "corpus", "--model", model, "--json")
        assert done.code == 0, done.err
        assert vectorize_here("collections", "switch", "corpus").code == 0
        (hit,) = vectorize_here("search", TEXT, "--limit", 1, "--json").json
        assert "boat" in hit["source_id"]
        assert hit["model"].startswith(f"{model}@")
        assert not before or vectorize_here("collections", "drop", before, "--yes").code == 0
