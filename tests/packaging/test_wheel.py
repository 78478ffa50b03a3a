"""The wheel in an empty environment: the core alone, far from the checkout, nothing written where it is installed."""

import json
import os
import signal
import subprocess
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from tests.packaging.environments import Environment, build_wheel, make_environment
from tests.servers.ports import free_ports
from vectorize_pipelines.encoders.engines.equality import MEAN_COSINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEFINITIONS = "vectorize_pipelines.definitions"
OPTIONAL = ("torch", "transformers", "sentence_transformers", "open_clip", "qdrant_client", "weaviate", "psycopg2")
#: The definitions are imported meanwhile, on machines that may be busy with other tests.
_START_SECONDS = 300


class Installation(NamedTuple):
    environment: Environment
    files: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The environment that all tests here use, and the files of its packages before any of it has run."""
    environment = make_environment(tmp_path_factory.mktemp("installed"), wheel)
    return Installation(environment, environment.files())


@pytest.fixture(scope="module")
def installed(installation: Installation) -> Environment:
    return installation.environment


@pytest.fixture(scope="module")
def collection(installed: Environment) -> str:
    """Two small files, embedded by the command in `.vectorize` of the working directory."""
    documents = installed.place / "documents"
    documents.mkdir()
    (documents / "tide.md").write_text("# Tide\n\nThe tide gauge is read every six minutes.\n")
    (documents / "lamp.txt").write_text("The lamp of the lighthouse is cleaned on Mondays.\n")
    installed.run("vectorize", "ingest", "documents", "--collection", "notes")
    return "notes"


def test_it_has_its_defaults_its_licence_and_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert {
        f"vectorize_pipelines/{name}"
        for name in (
            *("py.typed", "defaults/dagster.yaml", "defaults/kafka.yaml", "defaults/api_keys.yaml"),
            *(f"providers/limits/{script}.lua" for script in ("acquire", "begin", "release", "use", "change")),
        )
    } <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "examples/")) for name in names)
    assert "License-Expression: Apache-2.0\n" in metadata


def test_the_core_has_nothing_that_is_optional(installed: Environment) -> None:
    code = f"from importlib.util import find_spec; print(*[name for name in {OPTIONAL!r} if find_spec(name)])"
    assert installed.run("python", "-c", code).stdout.split() == []


def test_the_doctor_finds_nothing_wrong(installed: Environment) -> None:
    findings = {each["name"]: each for each in json.loads(installed.run("vectorize", "doctor", "--json").stdout)}
    assert {name for name, each in findings.items() if each["status"] not in ("ok", "off")} == set()
    assert str(installed.place / ".vectorize") in findings["home"]["detail"]
    assert "pip install 'vectorize-pipelines[torch,clip," in findings["extras"]["remedy"]


def test_documents_are_found_without_torch(installed: Environment, collection: str) -> None:
    found = installed.run("vectorize", "search", "--json", "when is the tide measured", "--collection", collection)
    hits = json.loads(found.stdout)
    assert [Path(hit["source_id"]).name for hit in hits] == ["tide.md", "lamp.txt"]
    listed = json.loads(installed.run("vectorize", "models", "list", "--json").stdout)
    (model,) = (each for each in listed if "models.text" in each["configured"])
    assert (model["origin"], model["engine"]) == ("bundled", "openvino")
    assert all(measured["mean_cosine"] >= MEAN_COSINE for measured in model["measured"] if measured["equal"])
    assert any(measured["equal"] for measured in model["measured"])
    code = f"from vectorize_pipelines import load_encoder; print(load_encoder({model['model']!r}).choice.reason)"
    said = installed.run("python", "-c", code, VECTORIZE_HOME=str(installed.place / ".vectorize"))
    assert "Held against a forward pass in numpy on this CPU" in said.stdout


def test_state_lies_in_the_working_directory_or_where_it_is_told_to(installed: Environment, collection: str) -> None:
    assert (installed.place / ".vectorize" / "lancedb").is_dir()
    link = installed.place / ".vectorize" / "dagster" / "dagster.yaml"
    assert link.resolve().is_relative_to(installed.packages)
    assert {path.name for path in installed.place.iterdir()} == {".vectorize", "documents"}
    other = installed.place.parent / "another home"
    collections = installed.run("vectorize", "collections", "--json", VECTORIZE_HOME=str(other))
    assert json.loads(collections.stdout) == []
    assert {each["name"] for each in json.loads(installed.run("vectorize", "collections", "--json").stdout)} == {
        collection
    }


def test_dagster_validates_the_definitions(installed: Environment) -> None:
    done = installed.run("dagster", "definitions", "validate", "-m", DEFINITIONS)
    assert f"Validation successful for code location {DEFINITIONS}" in done.stdout + done.stderr


def test_dagster_dev_comes_up_and_writes_nothing_where_it_is_installed(
    installation: Installation, tmp_path: Path
) -> None:
    installed = installation.environment
    (port,) = free_ports(1)
    command = ["dagster", "dev", "-m", DEFINITIONS, "-h", "127.0.0.1", "-p", str(port)]
    log = tmp_path / "dagster-dev.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(installed.folder / "bin" / command[0]), *command[1:]],
            cwd=installed.place,
            env=installed.variables(DAGSTER_DISABLE_TELEMETRY="yes", VECTORIZE_CORPUS__WATCH="false"),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        answer = _first_answer(process, f"http://127.0.0.1:{port}/graphql", log)
    finally:
        _end(process)
    assert answer["data"]["version"]
    (location,) = answer["data"]["workspaceOrError"]["locationEntries"]
    assert (location["name"], location["loadStatus"]) == (DEFINITIONS, "LOADED")
    assert installed.files() == installation.files


class Lacking(NamedTuple):
    """A command, settings for it, and the extra that both need and the environment has not; how the command ends."""

    command: list[str]
    variables: dict[str, str]
    extra: str
    code: int


LACKING = [
    Lacking(["collections"], {"VECTORIZE_STORE__KIND": "qdrant"}, "qdrant", 2),
    Lacking(["collections"], {"VECTORIZE_STORE__KIND": "weaviate"}, "weaviate", 2),
    Lacking(["requests"], {"VECTORIZE_LEDGER__URL": "postgresql://user@localhost/x"}, "postgres", 2),
    Lacking(["models", "export", "ViT-B/32"], {}, "clip", 4),
    Lacking(["search", "x", "--collection", "notes"], {"VECTORIZE_ENCODER__ENGINE": "torch"}, "torch", 2),
    Lacking(["search", "x", "--collection", "notes"], {"VECTORIZE_ENCODER__DEVICE": "cuda"}, "torch", 2),
    Lacking(["ingest", "s3://bucket/documents"], {}, "s3", 3),
]
#: All of them in one process of the environment, since most of what each takes is its imports.
CALLS = """
import json, os, sys, tempfile
from contextlib import redirect_stderr
from vectorize_pipelines.cli import main

before, found = dict(os.environ), []
for command, variables in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before, **variables)
    sys.argv = ["vectorize", *command]
    with tempfile.TemporaryFile("w+") as said, redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            said.seek(0)
            found.append([ended.code, said.read()])
print(json.dumps(found))
"""


def test_what_is_missing_is_named_with_what_installs_it(installed: Environment, collection: str) -> None:
    calls = json.dumps([(each.command, each.variables) for each in LACKING])
    found = json.loads(installed.run("python", "-c", CALLS, calls).stdout.splitlines()[-1])
    for each, (code, said) in zip(LACKING, found, strict=True):
        assert code == each.code, said
        assert f"pip install 'vectorize-pipelines[{each.extra}]'" in said
        assert "Traceback" not in said


def test_commands_write_nothing_where_it_is_installed(installation: Installation, collection: str) -> None:
    """The last test here: it sees what the ones before it wrote; alone, what `ingest` does."""
    environment = installation.environment
    assert (environment.place / ".vectorize" / "lancedb").is_dir()
    assert environment.files() == installation.files


def _first_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> dict[str, Any]:
    """What GraphQL answers once the server does, and has loaded the definitions."""
    query = "{version workspaceOrError {... on Workspace {locationEntries {name loadStatus}}}}"
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"no answer after {_START_SECONDS} s: {log.read_text()}"
        try:
            answer = requests.post(url, json={"query": query}, timeout=60)
        except requests.ConnectionError:
            time.sleep(0.25)
            continue
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content


def _end(process: subprocess.Popen[bytes]) -> None:
    """`dagster dev` may outlive a SIGTERM; what it started is in its group."""
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
