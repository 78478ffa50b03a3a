"""TLS and SASL against a real broker, and what the client is told for the rest."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.servers import kafka
from vectorize_pipelines.client import VectorizeClient
from vectorize_pipelines.errors import KafkaError, SettingsError
from vectorize_pipelines.kafka.clients import _common, consumer, kafka_error, producer
from vectorize_pipelines.kafka.topics import check_topics, create_topics
from vectorize_pipelines.settings import KafkaSettings, load_settings

PASSWORD = "correct-horse"
WRONG = "battery-staple"
JAAS = "org.apache.kafka.common.security"


@pytest.fixture(scope="module")
def secured(kafka_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[kafka.Server, Path]]:
    """A broker with a listener for each way in, and the certificate of its authority."""
    folder = tmp_path_factory.mktemp("secured")
    keystore, certificate = folder / "broker.p12", folder / "ca.pem"
    store = ["-keystore", str(keystore), "-storepass", "changeit", "-alias", "broker"]
    made = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=localhost", "-ext", "SAN=dns:localhost", "-validity", "2"]
    server = kafka.Server(
        folder / "broker",
        listeners={"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL"},
        users={"alice": PASSWORD},
        properties={
            **{
                f"listener.name.{listener}.{name}": value
                for listener in ("sasl", "both")
                for name, value in {
                    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                    "plain.sasl.jaas.config": f'{JAAS}.plain.PlainLoginModule required user_alice="{PASSWORD}";',
                    "scram-sha-256.sasl.jaas.config": f"{JAAS}.scram.ScramLoginModule required;",
                    "scram-sha-512.sasl.jaas.config": f"{JAAS}.scram.ScramLoginModule required;",
                }.items()
            },
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(keystore),
            "ssl.keystore.password": "changeit",
        },
    )
    subprocess.run(["keytool", *made, *store], check=True, capture_output=True)
    exported = subprocess.run(["keytool", "-exportcert", "-rfc", *store], check=True, capture_output=True)
    certificate.write_bytes(exported.stdout)
    with server:
        yield server, certificate


@pytest.mark.parametrize(
    ("listener", "options"),
    [
        ("SASL", {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}),
        ("SASL", {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-256"}),
        ("TLS", {"security_protocol": "SSL"}),
        ("BOTH", {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("sasl_mechanism", "no SASL"),
)
def test_a_request_goes_in_by_every_door(
    secured: tuple[kafka.Server, Path], listener: str, options: dict[str, Any]
) -> None:
    server, certificate = secured
    options = dict(options)
    if "sasl_mechanism" in options:
        options |= {"sasl_username": "alice", "sasl_password": SecretStr(PASSWORD)}
    if options["security_protocol"].endswith("SSL"):
        options["ssl_ca_location"] = certificate
    settings = KafkaSettings(bootstrap_servers=server.address(listener), request_seconds=20, **options)
    create_topics(settings)
    with VectorizeClient.from_settings(settings) as client:
        client.submit("a text")


@pytest.mark.parametrize(
    ("listener", "options", "said"),
    [
        (
            "SASL",
            {
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_username": "alice",
                "sasl_password": SecretStr(WRONG),
            },
            "authentication",
        ),
        ("TLS", {"security_protocol": "SSL"}, "certificate"),
    ],
    ids=["wrong password", "unknown authority"],
)
def test_a_closed_door_is_said_without_the_password(
    secured: tuple[kafka.Server, Path], listener: str, options: dict[str, Any], said: str
) -> None:
    server, _ = secured
    settings = KafkaSettings(bootstrap_servers=server.address(listener), request_seconds=2, **options)
    with pytest.raises(KafkaError) as error:
        check_topics(settings)
    assert said in str(error.value).lower()
    assert WRONG not in str(error.value)


def test_what_the_client_is_told_for_oauth_and_client_certificates() -> None:
    settings = KafkaSettings(
        bootstrap_servers="broker:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="OAUTHBEARER",
        oauth_token_endpoint="https://login.example.com/token",
        oauth_client_id="vectorize",
        oauth_client_secret=SecretStr("s3cret"),
        oauth_scope="kafka",
        ssl_ca_location=Path("/ca.pem"),
        ssl_certificate_location=Path("/me.pem"),
        ssl_key_location=Path("/me.key"),
        ssl_key_password=SecretStr("k3y"),
    )
    properties = _common(settings)
    assert {name: properties[name] for name in properties if name.startswith(("sasl", "ssl", "security"))} == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": "https://login.example.com/token",
        "sasl.oauthbearer.client.id": "vectorize",
        "sasl.oauthbearer.client.secret": "s3cret",
        "sasl.oauthbearer.scope": "kafka",
        "ssl.ca.location": "/ca.pem",
        "ssl.certificate.location": "/me.pem",
        "ssl.key.location": "/me.key",
        "ssl.key.password": "k3y",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "needs sasl_username and sasl_password"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"},
            "oauth_token_endpoint and oauth_client_id",
        ),
        ({"sasl_mechanism": "PLAIN"}, "needs security_protocol SASL_SSL"),
        ({"ssl_ca_location": "/ca.pem"}, "needs security_protocol SSL or SASL_SSL"),
    ],
)
def test_protection_that_would_not_work_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(environment={}, kafka=options)


def test_further_properties_and_their_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    file = tmp_path / "kafka.yaml"
    file.write_text("producer: {'no.such.${A_SECRET}': 1, linger.ms: 7}\nconsumer: {fetch.wait.max.ms: '${A_SECRET}'}")
    settings = KafkaSettings(bootstrap_servers="localhost:1", config_file=file)
    with pytest.raises(SettingsError, match=r"no\.such") as refused:
        producer(settings)
    assert "A_SECRET" in str(refused.value)  # names of properties are not filled in
    with pytest.raises(SettingsError, match=r"fetch\.wait\.max\.ms") as refused:
        consumer(settings)
    assert "hunter2" not in str(refused.value)


def test_no_error_repeats_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    file = tmp_path / "kafka.yaml"
    file.write_text("producer: {sasl.password: '${A_SECRET}'}")
    settings = KafkaSettings(bootstrap_servers="localhost:1", config_file=file, ssl_key_password=SecretStr("k3y"))
    error = kafka_error(settings, "sending", ValueError("hunter2 and k3y were refused"))
    assert str(error) == "sending failed at localhost:1: *** and *** were refused"
