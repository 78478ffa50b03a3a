"""Attacks by what is shown: a secret, wherever it may stand, appears in no error, log, event, row or run."""

import base64
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from tests.encoders.tiny_clips import build_clip
from tests.forks import Fork, run
from tests.pipeline.requests.installation import Installation, install
from tests.servers.web import Web, answer, serving
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.urls import shown_text, shown_url, stored_uri
from vectorize_pipelines.errors import (
    ItemError,
    LedgerError,
    RefusedUriError,
    SettingsError,
    SourceError,
    UnreadableFileError,
)
from vectorize_pipelines.kafka.clients import consumer, kafka_error, producer
from vectorize_pipelines.kafka.config_file import read_config
from vectorize_pipelines.pipeline.checks.vectors import read_listed_image
from vectorize_pipelines.pipeline.generations.begin import Wanted
from vectorize_pipelines.pipeline.generations.recutting import can_be_cut
from vectorize_pipelines.pipeline.generations.stream import open_reembedding
from vectorize_pipelines.pipeline.generations.writer import GenerationWriter
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import KafkaSettings, Settings, load_settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.fetching import FetchPolicy, fetch
from vectorize_pipelines.sources.files import FileSource, normalised_root
from vectorize_pipelines.sources.rereading import ContentReader, is_listed_file, listed_roots
from vectorize_pipelines.state.callbacks import callbacks
from vectorize_pipelines.state.database import Database, database_url
from vectorize_pipelines.state.home import use_dagster_home

#: Appears in every secret of these tests, and nowhere else.
MARK = "hunter2Xq7"


def files_with(mark: str, folder: Path) -> list[str]:
    """The files below a folder, databases and logs among them, that hold the mark."""
    found = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return sorted(str(file.relative_to(folder)) for file in found if mark.encode() in file.read_bytes())


# ---- files of settings

WRONG_YAML = {
    "a quote that does not end": f"store:\n  api_key: '{MARK}\n  kind: lancedb\n",
    "an alias": f"store:\n  api_key: *{MARK}\n",
    "a tag": f"store:\n  api_key: !{MARK} x\n",
    "a tag with quotes": f"store:\n  api_key: !it's{MARK} x\n",
    "a bracket that is not its own": f"store: {{api_key: {MARK}]\n",
    "a second colon": f"store:\n  api_key: a: {MARK}\n",
    "a tab": f"store:\n\tapi_key: {MARK}\n",
    "a character that begins nothing": f"store:\n  api_key: @{MARK}\n",
    "an unknown escape": f'store:\n  api_key: "\\{MARK}"\n',
    "a number that is none": f"store:\n  api_key: !!int {MARK}\n",
    "a time that is none": f"store:\n  api_key: !!timestamp {MARK}\n",
    "a truth that is none": f"store:\n  api_key: !!bool {MARK}\n",
    "a day that is none": f"store:\n  api_key: 2024-13-45\n  kind: {MARK}\n",
    "bytes that are none": f"store:\n  api_key: !!binary {MARK}-ä\n",
    "a directive": f"%TAG !{MARK}\n---\nstore: {{}}\n",
    "a control character": f"store:\n  api_key: {MARK}\x07\n",
    "a merge of what is no mapping": f"store:\n  <<: {MARK}\n",
    "a list where a tree belongs": f"store: [{MARK}]\n",
    "a value where a tree belongs": f"store: {MARK}\n",
    "a value alone": f"{MARK}\n",
    "a missing blank": f"store: {{api_key:{MARK}}}\n",
    "a missing blank in a block": f"store:\n  api_key:{MARK}:\n",
}
#: Of these the place is known.
WITHOUT_A_PLACE = (
    "a number that is none", "a time that is none", "a truth that is none", "a day that is none",
    "a list where a tree belongs", "a value where a tree belongs", "a value alone", "a missing blank",
    "a missing blank in a block",
)  # fmt: skip


@pytest.mark.parametrize("case", WRONG_YAML)
def test_an_error_of_vectorize_yaml_shows_the_place_and_not_the_line(case: str, tmp_path: Path) -> None:
    (tmp_path / "vectorize.yaml").write_text(WRONG_YAML[case])
    with pytest.raises(SettingsError) as caught:
        load_settings({}, tmp_path)
    assert str(tmp_path / "vectorize.yaml") in str(caught.value)
    assert MARK not in str(caught.value)
    if case not in WITHOUT_A_PLACE:
        assert ", line " in str(caught.value)


@pytest.mark.parametrize("case", WRONG_YAML)
def test_the_same_of_kafka_yaml(case: str, tmp_path: Path) -> None:
    file = tmp_path / "kafka.yaml"
    file.write_text(WRONG_YAML[case].replace("store", "producer").replace("kind", "linger.ms"))
    with pytest.raises(SettingsError) as caught:
        read_config(file)
    assert str(file) in str(caught.value)
    assert MARK not in str(caught.value)


@pytest.mark.parametrize("case", WRONG_YAML)
def test_the_same_of_dagster_yaml(case: str, tmp_path: Path) -> None:
    (tmp_path / "dagster").mkdir()
    file = tmp_path / "dagster" / "dagster.yaml"
    file.write_text(WRONG_YAML[case].replace("store", "storage"))
    try:
        shown = str(database_url(load_settings({}, tmp_path, home=tmp_path)))
    except SettingsError as error:
        shown = str(error)
        assert str(file) in shown
    assert MARK not in shown


@hypothesis_settings(deadline=None, max_examples=200)
@given(place=st.integers(0, 60), junk=st.text("'\"{}[]:,&*!|>%@`#-?\\\t\n \x00ä", min_size=1, max_size=4))
def test_no_slip_of_a_finger_shows_a_secret(place: int, junk: str) -> None:
    text = f"store:\n  kind: weaviate\n  api_key: {MARK}\nredis: {{url: 'redis://:{MARK}@h/0'}}\n"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vectorize.yaml").write_text(text[:place] + junk + text[place:], encoding="utf-8")
        assert MARK not in (_refusal({}, Path(folder)) or "")


def _refusal(environment: dict[str, str], folder: Path) -> str | None:
    """What is said of wrong settings; None where they are right."""
    try:
        load_settings(environment, folder)
    except SettingsError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "content",
    [f"VECTORIZE_STORE__API_KEY={MARK}\xff".encode("latin-1"), f"VECTORIZE_STORE__APIKEY={MARK}".encode(), b"\xff"],
)
def test_an_error_of_dotenv_shows_no_value(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"\.env") as caught:
        load_settings({}, tmp_path)
    assert MARK not in str(caught.value)


def _wrong_values() -> Iterator[tuple[str, str]]:
    """Every variable that is not free text, with the mark as its value."""
    from vectorize_pipelines.settings import setting_paths, variable_name

    for path in setting_paths():
        if path != ("encoder", "device"):  # which is named so that the typing error is seen, and is no secret
            yield variable_name(path), f"{MARK}@:/?#"


def test_no_setting_repeats_a_wrong_value(tmp_path: Path) -> None:
    said = {name: _refusal({name: value}, tmp_path) for name, value in _wrong_values()}
    refused = {name: text for name, text in said.items() if text is not None}
    assert len(refused) > 50
    assert [name for name, text in refused.items() if MARK in text] == []


# ---- databases

DATABASES = {
    "a password": f"postgresql://u:{MARK}@127.0.0.1:1/db",
    "a password in the query": f"postgresql://127.0.0.1:1/db?user=u&password={MARK}",
    "a password that is encoded": f"postgresql://127.0.0.1:1/db?user=u&password=a%20{MARK}%2F",
    "the password of a key": f"postgresql://127.0.0.1:1/db?sslpassword={MARK}&sslmode=require",
    "a file of passwords": f"postgresql://127.0.0.1:1/db?passfile=/{MARK}",
    "options": f"postgresql://127.0.0.1:1/db?options=-c%20x={MARK}",
    "a parameter that does not exist": f"postgresql://127.0.0.1:1/db?passwordd={MARK}",
    "a mode that does not exist": f"postgresql://127.0.0.1:1/db?gsslib={MARK}&channel_binding=what",
    "a port": f"postgresql://u:p@127.0.0.1:{MARK}/db",
    "a slash in the password": f"postgresql://u:a/{MARK}@127.0.0.1:1/db",
    "no driver": f"mysql://u:{MARK}@h/d",
    "no URL": f"password={MARK}",
}


@pytest.mark.parametrize("case", DATABASES)
def test_a_database_that_cannot_be_reached_is_named_without_secrets(case: str, tmp_path: Path) -> None:
    settings = load_settings({}, tmp_path, home=tmp_path, ledger={"url": DATABASES[case]})
    with pytest.raises((LedgerError, SettingsError)) as caught:
        Database.open(settings)
    assert MARK not in str(caught.value)
    assert MARK not in "".join(_causes(caught.value))
    assert MARK not in repr(settings)


@pytest.mark.parametrize(
    "storage",
    [
        f"{{postgres: {{postgres_url: 'postgresql://127.0.0.1:1/db?password={MARK}'}}}}",
        f"{{postgres: {{postgres_db: {{username: u, password: {MARK}, hostname: 127.0.0.1, port: 1, db_name: d}}}}}}",
        f"{{postgres: {{postgres_db: {{username: u, password: {MARK}, hostname: h, port: '{MARK}', db_name: d}}}}}}",
        f"{{postgres: {{postgres_db: {{username: u, password: {MARK}}}}}}}",
        f"{{postgres: {MARK}}}",
        f"postgres://u:{MARK}@h/d",
    ],
)
def test_the_same_for_the_database_of_dagster_yaml(storage: str, tmp_path: Path) -> None:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text(f"storage: {storage}\n")
    with pytest.raises((LedgerError, SettingsError)) as caught:
        Database.open(load_settings({}, tmp_path, home=tmp_path))
    assert MARK not in "".join([str(caught.value), *_causes(caught.value)])


def _causes(error: BaseException) -> Iterator[str]:
    """What Dagster stores of an error beside its own message."""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is not None:
        yield f"{behind!r} {behind}"
        yield from _causes(behind)


# ---- Kafka


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, f"producer: {{sasl.passwordd: {MARK}}}\nconsumer: {{sasl.passwordd: {MARK}}}"),
        ({}, f"producer: {{ssl.key.password: {MARK}, linger.ms: no}}\nconsumer: {{ssl.key.password: {MARK}, x: 1}}"),
        ({}, f"producer: {{security.protocol: ssl, ssl.key.pem: {MARK}}}\nconsumer: {{ssl.key.pem: {MARK}, x: 1}}"),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "oauth_token_endpoint": f"nonsense://u:{MARK}@h/t?key={MARK}#{MARK}",
                "oauth_client_id": "me",
                "oauth_client_secret": MARK,
            },
            f"producer: {{x.password: {MARK}}}\nconsumer: {{x.password: {MARK}}}",
        ),
    ],
)
def test_a_refused_property_is_named_without_its_value(options: dict[str, Any], config: str, tmp_path: Path) -> None:
    file = tmp_path / "kafka.yaml"
    file.write_text(config)
    settings = KafkaSettings(bootstrap_servers="localhost:1", config_file=file, **options)
    for client in (producer, consumer):
        with pytest.raises(SettingsError) as caught:
            client(settings)
        assert MARK not in str(caught.value)


def test_an_error_of_kafka_shows_no_token_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "kafka.yaml"
    file.write_text(f"producer: {{sasl.oauthbearer.client.secret: written-{MARK}}}")
    endpoint = f"https://u:{MARK}@login.example/token?key={MARK}"
    settings = KafkaSettings(bootstrap_servers="localhost:1", config_file=file, oauth_token_endpoint=endpoint)
    text = f"Failed to retrieve token from {endpoint}: written-{MARK}, {MARK}"
    shown = str(kafka_error(settings, "sending", ValueError(text)))
    assert MARK not in shown
    assert "https://login.example/token" in shown


def test_servers_with_a_password_are_refused() -> None:
    with pytest.raises(SettingsError, match="settings of their own") as caught:
        load_settings({"VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": f"kafka://u:{MARK}@h:9092"})
    assert MARK not in str(caught.value)


# ---- URLs

URLS = (
    f"https://u:{MARK}@host:8080/path?sig={MARK}#token={MARK}",
    f"https://{MARK}@host/path",
    f"https://u:a/{MARK}@host/path",
    f"https://u:a?{MARK}@host/path",
    f"https://u:a#{MARK}@host/path",
    f"https://u:80/{MARK}@host/path",
    f"https:host/path?{MARK}",
    f"data:text/plain,{MARK}",
    f"s3://key:{MARK}@bucket/name?versionId={MARK}",
    f"redis://:{MARK}@host:6379/0",
    f"https://[{MARK}",
    f"https://h℀:{MARK}@host/",
)


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_shown_without_its_secrets(url: str) -> None:
    assert MARK not in shown_url(url)
    assert MARK not in shown_text(f"GET {url}, which failed; '{url}'", url)


def test_the_rest_of_a_url_is_shown() -> None:
    assert shown_url("https://host:8080/a/b.png?x#y") == "https://host:8080/a/b.png"
    assert shown_url("/a folder/what?.png#1") == "/a folder/what?.png#1"
    assert shown_text("see https://a.example/x?y (or http://b:1/).") == "see https://a.example/x (or http://b:1)."


@pytest.mark.parametrize("mark", list("'\"<>`"))
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pa{}{}@host/db", "postgresql://user:pa{}/{}@host/db", "postgresql://user:pa {}{}@host/db",
        "postgresql://us{}er:{}@host/db", "https://{}{}@host/x", "s3://b/k?X-Amz-Signature=abc{}{}",
        "s3://b/k#token=abc{}{}", "s3://b/it{}s?sig={}", "postgresql://user:pa{}{}",
    ],
)  # fmt: skip
def test_a_mark_within_a_secret_does_not_end_its_url(url: str, mark: str) -> None:
    text = shown_text(f"cannot open {url.format(mark, MARK)} (a\nnext 'line'): it is away")
    assert MARK not in text
    assert text.startswith("cannot open ")
    assert text.endswith(" (a\nnext 'line'): it is away")


def test_what_stands_beside_a_url_without_secrets_is_shown() -> None:
    for text in (
        "<http://a/b>, `http://c:80`", '{"a": "http://b", "c": 1}', "'http://[::1]:80'; x@y", "http://a:80: b c@d",
        "['http://a/b','http://c:1']",
    ):  # fmt: skip
        assert shown_text(text) == text
    assert shown_text("'https://u:p@a/x?y'.") == "'https://a/x'."


def test_a_long_text_is_shown_soon() -> None:
    for part in ("a", "a:", "a://", "a://b:", "a://b:c@", "a://'", "://"):
        text = part * (200_000 // len(part))
        assert shown_text(text)


def test_settings_in_a_query_are_no_secrets() -> None:
    url = "postgresql://u:1@10.0.0.10/db?connect_timeout=10&sslmode=require&sslpassword=0#a"
    said = "server at 10.0.0.10 wants sslmode require, after 10 s of 10; 0, 1, \\n0, %200 and 100a"
    shown = "server at 10.***.***.10 wants sslmode require, after 10 s of 10; ***, ***, \\n***, %20*** and 100a"
    assert shown_text(said, url) == shown


@given(st.text())
def test_any_text_is_shown(text: str) -> None:
    shown_url(text)
    shown_text(text, text)
    stored_uri(text, keep_query=False)


@pytest.mark.parametrize("url", URLS)
def test_an_error_of_fetching_shows_no_secret(url: str) -> None:
    policy = FetchPolicy.of(load_settings({}, uris={"allowed_schemes": ["https", "http", "s3", "redis"]}).uris)
    if url.startswith("data:"):
        assert fetch(url, policy) == MARK.encode()
        return
    with pytest.raises(ItemError) as caught:
        fetch(url, policy)
    assert MARK not in "".join([str(caught.value), *_causes(caught.value)])


@pytest.mark.parametrize("url", [f"memory://bucket/name?sig={MARK}#{MARK}", f"nosuchscheme://a?{MARK}"])
def test_an_error_of_a_library_shows_no_secret(url: str) -> None:
    with pytest.raises(ItemError) as caught:
        read_content(url, 10)
    assert MARK not in "".join([str(caught.value), *_causes(caught.value)])


@pytest.mark.parametrize("url", [*URLS[:5], *URLS[8:], f"memory://b/x#{MARK}", f"file:///tmp/x?{MARK}"])
def test_a_source_with_secrets_in_its_url_is_refused_unseen(url: str) -> None:
    for opened in (normalised_root, lambda root: FileSource(root, (), (), ())):
        with pytest.raises(SourceError) as caught:
            opened(url)
        assert MARK not in str(caught.value)


# ---- commands, as a user runs them, with a secret in every setting that may hold one

EVERYWHERE = {
    "VECTORIZE_STORE__KIND": "weaviate",
    "VECTORIZE_STORE__URL": "http://127.0.0.1:1",
    "VECTORIZE_STORE__API_KEY": f"store-{MARK}",
    "VECTORIZE_STORE__WEAVIATE__RETRIES": "0",
    "VECTORIZE_STORE__WEAVIATE__CONNECT_SECONDS": "1",
    "VECTORIZE_PIPELINE__STORE_OUTAGE_SECONDS": "0",
    "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "VECTORIZE_KAFKA__REQUEST_SECONDS": "1",
    "VECTORIZE_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "VECTORIZE_KAFKA__SASL_MECHANISM": "PLAIN",
    "VECTORIZE_KAFKA__SASL_USERNAME": "me",
    "VECTORIZE_KAFKA__SASL_PASSWORD": f"sasl-{MARK}",
    "VECTORIZE_KAFKA__SSL_KEY_PASSWORD": f"key-{MARK}",
    "VECTORIZE_REDIS__URL": f"redis://:a/{MARK}@127.0.0.1:1/0",
    "VECTORIZE_LEDGER__URL": f"postgresql://127.0.0.1:1/db?user=u&password={MARK}&sslpassword={MARK}",
    "VECTORIZE_CALLBACKS__SECRET": f"callback-{MARK}",
    "VECTORIZE_ALERTS__WEBHOOK_URL": f"https://hooks.example/services/{MARK}",
    "VECTORIZE_CORPUS__PATH": f"https://u:{MARK}@127.0.0.1:1/x?sig={MARK}#{MARK}",
    "VECTORIZE_GALLERY__PATH": f"memory://bucket/x#{MARK}",
}


@pytest.fixture
def inside(tmp_path: Path, exported_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of commands with `EVERYWHERE`, and all that they write to; the models lie elsewhere."""
    for name, value in EVERYWHERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VECTORIZE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VECTORIZE_ENCODER__CACHE_DIRECTORY", str(exported_models))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["doctor"], 1),
        (["requests"], 1),
        (["collections"], 5),
        (["topics", "check"], 7),
        (["submit", "--image", f"https://u:{MARK}@h/x?sig={MARK}", "--callback-url", f"https://h/{MARK}"], 7),
        (["ingest", f"https://127.0.0.1:1/x?sig={MARK}"], 3),
        (["ingest", f"https://127.0.0.1:1/x#token={MARK}"], 3),
        (["drain", "text", "--once"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_fails_shows_no_secret(arguments: list[str], code: int | None, inside: Path) -> None:
    done = run("vectorize", *arguments)
    assert MARK not in done.out
    assert MARK not in done.err
    assert "Traceback" not in done.err, done.err
    assert done.code == code if code is not None else done.code != 0, done.err
    assert not files_with(MARK, inside)


def test_a_run_that_fails_leaves_no_secret_in_dagsters_databases(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of a folder whose store is away; the events of Dagster hold the error and all its causes."""
    folder = inside / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("The lamp burns paraffin.")
    monkeypatch.delenv("VECTORIZE_LEDGER__URL")
    done = run("vectorize", "ingest", folder)
    assert done.code == 5, done.err
    assert MARK not in done.out + done.err
    assert files_with("STEP_FAILURE", inside / "home" / "dagster"), "the run and its failure were stored"
    assert not files_with(MARK, inside)


def _run_both_jobs() -> None:
    """As a schedule does: without a path of their own."""
    use_dagster_home(load_settings())
    from vectorize_pipelines.definitions import defs
    from vectorize_pipelines.partitions import today

    with dg.DagsterInstance.get() as instance:
        for job in ("embed_corpus", "embed_gallery"):
            done = defs.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=today(), raise_on_error=False
            )
            assert not done.success


def test_a_run_whose_folder_is_a_url_with_secrets_stores_none_of_them(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails on the path of the settings, which its process has had from the beginning."""
    monkeypatch.setenv("VECTORIZE_STORE__KIND", "lancedb")
    for name in ("VECTORIZE_LEDGER__URL", "VECTORIZE_STORE__URL"):
        monkeypatch.delenv(name)
    printed = inside / "printed"
    assert Fork(_run_both_jobs, out=printed, err=printed).wait(240) == 0, printed.read_text()
    assert "SourceError" in printed.read_text()
    assert not files_with(MARK, inside)


# ---- requests


def picture(number: int) -> bytes:
    """A small image, unlike any other number's."""
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 2 * number, 255 - number)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def web() -> Iterator[Web]:
    """Gives `/N.png` to whoever signs, refuses others; what begins with /hook fails."""

    def serve(handler: Any) -> None:
        path, _, query = handler.path.partition("?")
        if path.startswith("/hook"):
            answer(handler, 500)
        elif "sig=" not in query:
            answer(handler, 403)
        elif path.endswith(".png"):
            answer(handler, body=picture(int(path[1:-4])))
        else:
            answer(handler, body=b"no image at all")

    with serving(serve) as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_clip(tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture
def images(tmp_path: Path, kafka_settings: KafkaSettings, clip: str) -> Installation:
    """An installation for images that may fetch from this machine; `encoded` grows by what the encoder is asked for."""
    servers = kafka_settings.bootstrap_servers
    assert servers is not None
    made = install(
        tmp_path / "home", servers, kafka_settings.topic_prefix,
        uris={"allow_private": True}, callbacks={"allow_private": True, "attempts": 1},
        models={"image": clip},
        kafka={"drain": {"attempts": 1}},
    )  # fmt: skip
    made.modality = Modality.IMAGE
    return made


def image_request(task_id: str, uri: str, **fields: Any) -> dict[str, Any]:
    return {"task_id": task_id, "task_type": "image_vectorization", "data": uri, **fields}


def test_no_part_of_a_signed_uri_is_told_or_stored(
    images: Installation, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that is embedded, and others that fail in every way, each with secrets in all places of its URI."""
    caplog.set_level(logging.DEBUG, logger="vectorize_pipelines")
    signed = f"?sig={MARK}#token={MARK}"
    hook = {"callback_url": web.url(f"/hook/{MARK}?key={MARK}#{MARK}")}
    images.send(
        image_request("good", web.url(f"/1.png{signed}"), **hook),
        image_request("no image", web.url(f"/nothing.txt{signed}"), **hook),
        image_request("refused", web.url(f"/2.png?other={MARK}#{MARK}")),
        image_request("wrong sum", web.url(f"/2.png?sig={MARK}#sha256={'0' * 64}")),
        image_request("no host", f"http://h:x/{signed}"),
        image_request("user", f"http://u:{MARK}@127.0.0.1:{web.port}/2.png{signed}"),
        image_request("password with a slash", f"http://u:a/{MARK}@127.0.0.1/2.png"),
        image_request("scheme", f"ftp://u:{MARK}@127.0.0.1/2.png{signed}"),
        image_request("no callback", web.url("/3.png?sig=1"), callback_url=f"nonsense://{MARK}"),
        image_request("away", f"http://127.0.0.1:1/2.png{signed}"),
    )
    stream = images.drain()
    (row,) = images.rows("images").values()
    assert (row["uri"], json.loads(row["metadata"])["name"]) == (web.url("/1.png"), "1.png")
    assert {failure.source_id for failure in stream.failures} == {
        "no image", "refused", "wrong sum", "no host", "user", "password with a slash", "scheme", "no callback", "away",
    }  # fmt: skip
    told = {
        "failures": [repr(failure) for failure in stream.failures],
        "events": [json.dumps(event) for event in images.events()],
        "ledger": [repr(row) for row in images.ledger().values()],
        "rows": [repr(row) for row in images.rows("images").values()],
        "log": [record.getMessage() for record in caplog.records],
        "dead letters": [repr(letter.headers()) for letter in images.letters()],
    }
    assert [(name, text) for name, texts in told.items() for text in texts if MARK in text] == []
    with closing(Database.open(images.settings)) as database, database.read() as connection:
        kept = {(each.state, each.url) for each in connection.execute(callbacks.select())}
    assert kept == {("failed", f"http://127.0.0.1:{web.port}")}
    assert any(MARK.encode() in (letter.value() or b"") for letter in images.letters()), "as it came"
    assert not files_with(MARK, images.settings.home)


def test_another_signature_changes_nothing(images: Installation, web: Web) -> None:
    asked = list[Any]()
    images.on_encode = asked.extend
    images.send(image_request("one", web.url(f"/1.png?sig={MARK}1")))
    images.drain()
    before = images.rows("images")
    images.send(image_request("one", web.url(f"/1.png?sig={MARK}2")))
    images.drain()
    assert len(asked) == 1
    after = images.rows("images")
    changed = {name for place, row in after.items() for name, value in row.items() if value != before[place][name]}
    assert changed <= {"occurred_at", "partition", "run_id"}, "the request came again at another time"
    images.replay()
    assert images.rows("images") == after
    assert len(asked) == 1


def test_rows_of_before_lose_their_query_once_and_nothing_is_encoded_for_it(images: Installation, web: Web) -> None:
    asked = list[Any]()
    images.on_encode = asked.extend
    keeping = images.settings.uris.model_copy(update={"keep_query": True})
    images.send(image_request("one", web.url(f"/1.png?sig={MARK}#part")))
    leaving, images.settings = images.settings, images.settings.model_copy(update={"uris": keeping})
    images.drain()
    (row,) = images.rows("images").values()
    assert (row["uri"], json.loads(row["metadata"])["name"]) == (web.url(f"/1.png?sig={MARK}"), "1.png")
    images.settings = leaving
    images.replay()
    (row,) = images.rows("images").values()
    assert row["uri"] == web.url("/1.png")
    images.replay()
    assert list(images.rows("images").values()) == [row]
    assert len(asked) == 1


def test_an_announcement_in_the_fragment_still_counts(images: Installation, web: Web) -> None:
    digest = hashlib.sha256(picture(1)).hexdigest()
    images.send(
        image_request("right", web.url(f"/1.png?sig=1#sha256={digest}&size={len(picture(1))}")),
        image_request("wrong", web.url(f"/2.png?sig=1#sha256={digest}")),
    )
    stream = images.drain()
    assert [(each.source_id, each.error_class) for each in stream.failures] == [("wrong", "ContentMismatchError")]
    assert [row["uri"] for row in images.rows("images").values()] == [web.url("/1.png")]


@pytest.mark.parametrize("keep_query", [False, True])
def test_an_image_that_was_signed_says_what_to_do_when_it_is_read_again(web: Web, keep_query: bool) -> None:
    settings = load_settings({}, uris={"allow_private": True, "keep_query": keep_query})
    uri = stored_uri(web.url(f"/1.png?sig={MARK}"), keep_query=keep_query)
    reader = ContentReader(settings, 10_000)
    if keep_query:
        assert reader.read({"uri": uri, "source_id": "one"}) == picture(1)
        return
    with pytest.raises(ItemError, match="submit the request again, with a fresh signature") as caught:
        reader.read({"uri": uri, "source_id": "one"})
    assert "VECTORIZE_URIS__KEEP_QUERY" in str(caught.value)
    assert "answered 403" in str(caught.value)


def test_an_image_that_was_signed_keeps_its_row_when_its_collection_gets_another_model(
    images: Installation, web: Web, tmp_path: Path
) -> None:
    """It is listed with what to do; its request, sent again with a fresh signature, is embedded by both models."""
    images.send(image_request("one", web.url(f"/1.png?sig={MARK}1")))
    images.drain()
    wanted = Wanted(str(build_clip(tmp_path / "other clip", embed_dim=48)), None)
    again = open_reembedding(images.settings, images.store, "images", wanted, None, "again", images.lease)
    with again:
        for _ in written(DirectWriter(images.settings, images.store), again):
            pass
    (failure,) = again.failures
    assert (failure.source_id, failure.error_class) == ("one", "MissingContentError")
    assert "submit the request again" in failure.message
    assert MARK not in failure.message
    assert (images.store.count("images"), images.store.count(again.collection)) == (1, 0)

    images.send(image_request("one", web.url(f"/1.png?sig={MARK}2")))
    with (
        images.open_drain() as stream,
        closing(GenerationWriter(images.settings, images.store, images.lease)) as mirrors,
    ):
        for _ in written(mirrors, stream):
            pass
    assert (images.store.count("images"), images.store.count(again.collection)) == (1, 1)


@pytest.mark.parametrize("keep_query", [False, True])
def test_a_request_that_is_called_by_the_address_of_an_object_passes_for_no_file(
    images: Installation, tmp_path: Path, keep_query: bool
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/bucket/{tmp_path.name}.png", picture(9))
    memory.pipe(f"/bucket/{tmp_path.name}.png#1", picture(9))
    strict = images.settings
    rules = images.settings.uris.model_copy(update={"allowed_schemes": ("memory",), "keep_query": keep_query})
    images.settings = images.settings.model_copy(update={"uris": rules})
    for name in ("memory://bucket/{}.png", "MEMORY://bucket/{}.png", "memory://bucket/{}.png#1"):
        uri = name.format(tmp_path.name)
        announced = f"{uri}#sha256={hashlib.sha256(picture(9)).hexdigest()}"
        images.send(image_request(uri, uri), image_request(f"{uri}, announced", announced))
    assert not images.drain().failures
    rows = list(images.rows("images").values())
    assert len(rows) == 6
    for row in rows:
        assert row["uri"] != row["source_id"]
        assert not is_listed_file(row)
        assert ContentReader(images.settings, 10_000).read(row) == picture(9)
        with pytest.raises(RefusedUriError):
            ContentReader(strict, 10_000).read(row)


@pytest.mark.parametrize("uri", ["{}/1.png", "sftp://127.0.0.1:1/1.png", "file:///etc/passwd"])
def test_rows_of_before_are_read_under_the_rules_though_they_are_called_by_their_address(web: Web, uri: str) -> None:
    """Unless this installation lists what lies there by its settings."""
    uri = uri.format(web.url("").rstrip("/"))
    row = {"uri": uri, "source_id": uri, "modality": Modality.DOCUMENT}
    strict: Settings = load_settings({}, uris={"allowed_schemes": ["http"]})
    assert not is_listed_file(row, listed_roots(strict))
    assert not can_be_cut(row, listed_roots(strict))
    with pytest.raises(RefusedUriError):
        ContentReader(strict, 10_000).read(row)
    with pytest.raises(UnreadableFileError, match="came with a request"):
        read_listed_image(row)
    assert not web.asked
    root = uri.rpartition("/")[0]
    listing: Settings = load_settings({}, gallery={"path": root})
    assert is_listed_file(row, listed_roots(listing)) == (not uri.startswith("file:"))
    assert not is_listed_file({"uri": f"{root}2/1.png", "source_id": f"{root}2/1.png"}, listed_roots(listing))


def test_a_request_that_is_called_by_the_place_of_its_message_passes_for_no_file(images: Installation) -> None:
    place = f"kafka://{images.names.lane(Modality.IMAGE, 0)}/3/0"
    content = f"data:image/png;base64,{base64.b64encode(picture(1)).decode()}"
    images.send(image_request(place, content), partition=3)
    images.drain()
    (row,) = images.rows("images").values()
    assert row["source_id"] == place
    assert row["uri"] == place.replace("kafka:", "KAFKA:")


def test_a_request_that_is_called_by_its_own_address_passes_for_no_file(
    images: Installation, web: Web, tmp_path: Path
) -> None:
    """Files that the installation lists itself are read again without the rules for what others name."""
    file = tmp_path / "a picture?.png"
    file.write_bytes(picture(9))
    roots = images.settings.uris.model_copy(update={"allowed_roots": (str(tmp_path),)})
    images.settings = images.settings.model_copy(update={"uris": roots})
    images.send(
        image_request(web.url("/1.png"), web.url("/1.png?sig=1")), image_request(str(file), str(file)),
        image_request(file.as_uri(), file.as_uri()),
    )  # fmt: skip
    stream = images.drain()
    assert not stream.failures
    rows = list(images.rows("images").values())
    assert len(rows) == 3
    assert not any(is_listed_file(row) for row in rows)
    reader = ContentReader(images.settings, 10_000)
    assert [reader.read(row) for row in rows if "png#" not in row["uri"]] == [picture(9)] * 2
    strict: Settings = load_settings({}, home=tmp_path)
    for row in rows:
        with pytest.raises(ItemError):
            ContentReader(strict, 10_000).read(row)
