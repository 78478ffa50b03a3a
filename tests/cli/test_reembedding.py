"""A change of model as a user makes it: reembed, switch, rollback, drop."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.commands import Vectorize
from vectorize_pipelines.cli.collections import command
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters.expressions import Prefix

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OLD, NEW = "corpus__all-minilm-l6-v2-384", "corpus__all-minilm-l6-v2-128"


def collections(*arguments: object, code: int = 0) -> Any:
    """`vectorize collections …` in this process: what it prints, as JSON where it is."""
    done = CliRunner().invoke(command, [str(each) for each in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    assert (done.return_value or 0) == code, done.output
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


@pytest.mark.slow
def test_a_change_of_model_from_the_command_line(vectorize_here: Vectorize, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "lamp.md").write_text("The lamp of the lighthouse burns paraffin.")
    (folder / "boat.md").write_text("The supply boat lands on Tuesdays.")
    assert vectorize_here("ingest", folder).code == 0
    with pytest.raises(SettingsError, match="reembed"):
        collections("switch", "corpus")
    (only,) = collections("show", "corpus", "--json")
    assert (only["state"], only["rows"]) == ("live", 2)
    assert vectorize_here("collections", "reembed", "nothing", "--model", MODEL).code == 5

    done = vectorize_here("collections", "reembed", "corpus", "--model", MODEL, "--dimension", 128, "--json")
    assert done.code == 0, done.err
    assert (done.json["state"], done.json["encoded"], done.json["failed"]) == ("ready", 2, 0)
    assert done.json["physical"] == NEW
    listed = collections("--json")
    assert listed == collections("list", "--json")
    assert [(each["name"], each["dimension"]) for each in listed] == [("corpus", 384), (NEW, 128)]
    assert {each["state"] for each in collections("show", "corpus", "--json")} == {"live", "ready"}

    switched = collections("switch", "corpus", "--json")
    assert (switched["switched"], switched["live"], switched["kept"], switched["problems"]) == (True, NEW, OLD, [])
    assert (switched["rows_live"], switched["rows_new"], switched["canary_recall"]) == (2, 2, 1.0)
    assert switched["neighbour_overlap_at_10"] is None, "of two rows"
    (folder / "storm.md").write_text("A storm broke the window of the tower.")
    ingested = vectorize_here("ingest", folder, "--json")
    assert (ingested.code, ingested.json["encoded"], ingested.json["skipped"]) == (0, 1, 2)
    (hit,) = vectorize_here("search", "what broke the window", "--limit", 1, "--json").json
    assert "storm" in hit["text"]
    assert "dim=128" in hit["model"]

    for refused in (("show", NEW), ("switch", NEW), ("rollback", OLD)):
        with pytest.raises(SettingsError, match="generation of 'corpus'"):
            collections(*refused)
    assert collections("rollback", "corpus", "--json")["live"] == OLD
    (hit,) = vectorize_here("search", "what broke the window", "--limit", 1, "--json").json
    assert "storm" in hit["text"]
    assert "dim=384" in hit["model"]

    store = open_store(load_settings().store, home)
    store.delete(NEW, Prefix("source_id", str(folder / "boat")))
    refused = collections("switch", "corpus", "--json", code=1)
    assert (refused["switched"], refused["missing"], refused["live"]) == (False, 1, OLD)
    assert collections("switch", "corpus", "--force", "--json")["switched"] is True
    assert store.collection("corpus").physical == NEW
    assert f"corpus is {OLD}" in collections("rollback", "corpus")
    assert collections("drop", "corpus", "--yes", "--json") == {"dropped": NEW}
    assert [each["name"] for each in collections("--json")] == ["corpus"]
