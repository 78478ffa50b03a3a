"""Fixtures that every kind of test shares. Each test gets an installation of its own: another VECTORIZE_HOME."""

import io
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile, mkdtemp
from typing import IO

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.commands import COMMAND, Done, Vectorize
from tests.components import mark, need
from tests.paths import CHECKOUT
from tests.servers import kafka
from tests.servers import postgresql as postgresql_server
from tests.servers import redis as redis_servers
from tests.servers import s3 as s3_server
from tests.servers import weaviate as weaviate_server
from tests.servers.provider import ProviderServer, serving_provider
from tests.small_corpus import write_document
from vectorize_pipelines.cli import main
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.settings import PREFIX, KafkaSettings, LanceDBSettings, Settings, StoreSettings, load_settings

#: The topics of assessments, as their settings name them.
ASSESSMENT_ROLES = ("detections", "assessment_tasks", "risk_results", "assessment_dead_letter")

# How long an example takes says how busy the machine is, and nothing else.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")


def pytest_configure() -> None:
    """Take the developer's settings out of the environment of this process, and of all that it starts."""
    for name in list(os.environ):
        if (name.startswith(PREFIX) and not name.startswith("VECTORIZE_TEST_")) or name == "DAGSTER_HOME":
            del os.environ[name]
    # Where several processes share few cores, the threads of a product of matrices mostly spin, waiting for each other.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    # The tests run the code that they lie beside, from whatever folder a process of theirs is started.
    above = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *([above] if above else [])])


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Leave the checkout, whose `vectorize.yaml` and `.env` are the developer's, before any test module is imported."""
    if not session.config.getoption("numprocesses", None):  # xdist's controller starts processes where it was started
        folder = mkdtemp(prefix="vectorize-tests-")
        session.config.add_cleanup(partial(rmtree, folder, ignore_errors=True))
        session.config.add_cleanup(partial(os.chdir, Path.cwd()))
        os.chdir(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark(items)


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds in the working directory what another one left there."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _umask_of_the_session() -> Iterator[None]:
    """What a command called in this process closes to others is not for the tests after it."""
    mask = os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)


@pytest.fixture(scope="session")
def exported_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are exported to, once for all tests, those of xdist's other processes among them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if hasattr(request.config, "workerinput") else own) / "encoders"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def home(tmp_path: Path, exported_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VECTORIZE_HOME with nothing but exported models in it, in the environment too."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "encoders").symlink_to(exported_models)
    monkeypatch.setenv("VECTORIZE_HOME", str(folder))
    return folder


@pytest.fixture
def settings(home: Path) -> Settings:
    """The settings of that installation."""
    return load_settings()


@dataclass(frozen=True)
class Broker:
    """Where a broker is reached."""

    bootstrap_servers: str


@pytest.fixture(scope="session")
def kafka_program() -> None:
    """What starts a broker of a test's own: `kafka.Server`."""
    need(kafka.jars)


@pytest.fixture(scope="session")
def kafka_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker | kafka.Server]:
    """A real broker that all tests share: each has topics of its own (`kafka_settings`). Nobody stops it."""
    given = os.environ.get("VECTORIZE_TEST_KAFKA")
    if given:
        yield Broker(given)
        return
    request.getfixturevalue("kafka_program")
    with kafka.Server(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def kafka_settings(kafka_server: Broker | kafka.Server, monkeypatch: pytest.MonkeyPatch) -> KafkaSettings:
    """Settings of the shared broker with topics of the test's own (not made yet), in the environment too."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", kafka_server.bootstrap_servers)
    monkeypatch.setenv("VECTORIZE_KAFKA__TOPIC_PREFIX", prefix)
    topics = {f"{role}_topic": f"{prefix}.{role}" for role in ASSESSMENT_ROLES}
    for name, topic in topics.items():
        monkeypatch.setenv(f"VECTORIZE_KAFKA__{name.upper()}", topic)
    return KafkaSettings(bootstrap_servers=kafka_server.bootstrap_servers, topic_prefix=prefix, **topics)


@pytest.fixture
def topics(kafka_settings: KafkaSettings) -> TopicNames:
    """All topics of `kafka_settings`, made."""
    create_topics(kafka_settings)
    return TopicNames(kafka_settings.topic_prefix)


@pytest.fixture(scope="session")
def provider_server() -> Iterator[ProviderServer]:
    """A provider of remote models that all tests share."""
    with serving_provider() as server:
        yield server


@pytest.fixture
def provider(provider_server: ProviderServer) -> ProviderServer:
    """That provider, which knows no key yet, and has been asked nothing."""
    provider_server.reset()
    return provider_server


@pytest.fixture(scope="session")
def postgresql_program() -> None:
    """What starts a PostgreSQL: `postgresql.Server`."""
    need(postgresql_server.programs)


@pytest.fixture(scope="session")
def redis_program() -> None:
    """What starts a Redis of a test's own: `redis.running()`."""
    need(redis_servers.install)


@pytest.fixture(scope="session")
def redis_server(redis_program: None) -> Iterator[redis_servers.Server]:
    """A real Redis that all tests share. Nobody stops it."""
    with redis_servers.running() as server:
        yield server


@pytest.fixture
def redis_settings(redis_server: redis_servers.Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of an installation with the shared Redis, empty, in the environment too."""
    redis_server.empty()
    monkeypatch.setenv("VECTORIZE_REDIS__URL", redis_server.url)
    return load_settings()


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.Server]:
    """A real server of objects that all tests share: each has buckets of its own (`bucket`). Nobody stops it."""
    need(s3_server.installed)
    with s3_server.running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VECTORIZE_TEST_S3_SECRET", s3_server.SECRET)
        yield server


@pytest.fixture
def bucket(s3: s3_server.Server) -> str:
    """The name of an empty bucket."""
    name = f"test-{uuid.uuid4().hex}"
    s3.make_bucket(name)
    return name


@pytest.fixture
def bucket_store(s3: s3_server.Server, bucket: str) -> StoreSettings:
    """The settings of LanceDB in that bucket."""
    options = {
        "endpoint": s3.url,
        "region": "us-east-1",
        "allow_http": "true",
        "access_key_id": "key-of-tests",
        "secret_access_key": "env:VECTORIZE_TEST_S3_SECRET",
    }
    return StoreSettings(url=f"s3://{bucket}/vectors", lancedb=LanceDBSettings(storage_options=options))


@pytest.fixture(scope="session")
def weaviate_program() -> None:
    """What starts a Weaviate of a test's own: `weaviate.Server`."""
    need(weaviate_server.binary)


@pytest.fixture
def corpus(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four documents on three days; one of them cannot be read."""
    folder = tmp_path / "corpus"
    write_document(folder, "lamp.md", "# The lamp\n\nThe lamp of the lighthouse burns paraffin.\n", 0)
    write_document(folder, "boat.txt", "The supply boat lands on Tuesdays, weather permitting.", 1)
    write_document(folder, "灯塔.md", "# 灯塔\n\n灯塔建于1897年。\n", 2)
    write_document(folder, "bad.pdf", "this is no PDF", 2)
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(folder))
    return folder


@pytest.fixture
def vectorize(home: Path) -> Vectorize:
    """`vectorize("search", "…")` on an installation of the test's own; `stdin="…"` is what it reads."""

    def call(*arguments: object, stdin: str | None = None) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False, timeout=280
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def vectorize_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Vectorize:
    """The same in the test's own process, without the seconds that a start takes. An error that escapes fails."""
    monkeypatch.setenv("DAGSTER_HOME", "set by commands, and taken back after the test")
    monkeypatch.delenv("DAGSTER_HOME")

    def call(*arguments: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["vectorize", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        # Files, since Dagster asks for their descriptors. What libraries in C print meanwhile is not the command's.
        with TemporaryFile("w+", encoding="utf-8") as out, TemporaryFile("w+", encoding="utf-8") as err:
            with redirect_stdout(out), redirect_stderr(err), logging_of_a_command(), pytest.raises(SystemExit) as ended:
                main()
            said = [_content(file) for file in (out, err)]
        assert "Traceback" not in said[1], said[1]
        return Done(int(ended.value.code or 0), *said)

    return call


def _content(file: IO[str]) -> str:
    file.flush()
    file.seek(0)
    return file.read()


@contextmanager
def logging_of_a_command() -> Iterator[None]:
    """Let a command set up the logging of its process, as if it had just begun; what it has changed is taken back."""
    root = logging.getLogger()
    names = [
        name for name in root.manager.loggerDict if name.partition(".")[0] in ("vectorize_pipelines", "huggingface_hub")
    ]
    loggers = [root, *map(logging.getLogger, {"vectorize_pipelines", "huggingface_hub", *names})]
    before = [(each, [*each.handlers], each.level, each.propagate, each.disabled) for each in loggers]
    disabled = root.manager.disable
    root.handlers = []
    for each in loggers:
        each.disabled, each.propagate = False, True
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logging.disable(disabled)
        for each, handlers, level, propagate, was_disabled in before:
            each.handlers, each.propagate, each.disabled = handlers, propagate, was_disabled
            each.setLevel(level)
