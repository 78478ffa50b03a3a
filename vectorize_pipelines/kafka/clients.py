"""Clients of the Kafka cluster, with security and properties from the settings. Nothing else constructs any."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from vectorize_pipelines.core import retrying
from vectorize_pipelines.core.urls import shown_text, without_secrets
from vectorize_pipelines.errors import KafkaError, KafkaNotConfiguredError, SettingsError
from vectorize_pipelines.kafka.config_file import read_config
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)


class _Repetitions(logging.Filter):
    """A filter that lets a message of librdkafka through once in a while: it says at each try that nobody answers.

    None that says what every broker does for a moment after its start.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # Without the client's number, the thread's name and times, which differ from try to try.
        text = re.sub(r"\[[^]]*#[^]]*\]|\[thrd:[^]]*\]|\d+ ?ms", "", record.getMessage())
        if text.startswith("GETPID") and "Coordinator load in progress" in text:
            return False
        now = time.monotonic()
        if now - self._shown.get(text, -inf) < TROUBLE_SECONDS:
            return False
        if len(self._shown) >= MESSAGES_REMEMBERED:
            self._shown.clear()
        self._shown[text] = now
        return True


#: Under transactions librdkafka waits so long for each new one after a commit; its default of 100 ms would be most
#: of a transaction's time.
TRANSACTION_BACKOFF_MS = 5
#: `send_offsets_to_transaction` of librdkafka (from 2.10 on, at least to 2.16) has no time limit and waits for ever for
#: a coordinator that was missing from the brokers' list for a moment, as in a restart (its issues 5456 and 5511), until
#: any connection changes its state after what is known of coordinators has become too old.
_FORGETTING = {
    "connections.max.idle.ms": 5_000,
    "topic.metadata.refresh.interval.ms": 2_000,
    "metadata.max.age.ms": 6_000,
}
#: Between two attempts of what a broker may do a moment later.
PAUSE_SECONDS = 0.1

#: So long what a connection suffered from is shown with the errors that follow from it.
TROUBLE_SECONDS = 60.0
#: Messages that are kept from being repeated.
MESSAGES_REMEMBERED = 100

Result = TypeVar("Result")

#: Addresses -> when and why a connection failed last. A call that fails for it only says that it timed out.
_troubles: dict[str, tuple[float, str]] = {}

log.addFilter(_Repetitions())


def consumer(settings: KafkaSettings, group: str | None = None, **overrides: Any) -> "Consumer":
    """Return a consumer that sees committed messages only, begins at the earliest and commits nothing by itself.

    `group` is that of the drain runs where it is None. `overrides` are properties of librdkafka.
    Raises `KafkaNotConfiguredError`, and `SettingsError` where the client refuses a property.
    """
    from confluent_kafka import Consumer

    properties = {
        **_common(settings),
        **read_config(settings.config_file).consumer,
        "group.id": group or settings.group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        **overrides,
    }
    with _refused_properties(settings):
        return Consumer(properties, logger=log)


def producer(settings: KafkaSettings, transactional_id: str | None = None, **overrides: Any) -> "Producer":
    """Return an idempotent producer (acks=all); with `transactional_id` a transactional one, not yet initialised.

    Raises `KafkaNotConfiguredError`, and `SettingsError` where the client refuses a property.
    """
    from confluent_kafka import Producer

    properties = {
        **_common(settings),
        "delivery.timeout.ms": round(settings.request_seconds * 1000),
        **read_config(settings.config_file).producer,
        "enable.idempotence": True,
        "acks": "all",
    }
    if transactional_id is not None:
        timeout = round(settings.drain.transaction_timeout_seconds * 1000)
        properties |= {
            **_FORGETTING,
            "transactional.id": transactional_id,
            "transaction.timeout.ms": timeout,
            "retry.backoff.ms": TRANSACTION_BACKOFF_MS,
            # librdkafka refuses a message, and a request, that may outlive its transaction.
            "delivery.timeout.ms": min(timeout, int(properties["delivery.timeout.ms"])),
            "socket.timeout.ms": min(timeout, int(properties["socket.timeout.ms"])),
        }
    with _refused_properties(settings):
        return Producer({**properties, **overrides}, logger=log)


def admin(settings: KafkaSettings) -> "AdminClient":
    """Return a client for topics and offsets. Raises `KafkaNotConfiguredError`, `SettingsError` as `consumer` does."""
    from confluent_kafka.admin import AdminClient

    with _refused_properties(settings):
        return AdminClient(_common(settings), logger=log)


def produce(sender: "Producer", topic: str, **message: Any) -> None:
    """Hand a message to the producer; wait while its queue is full. Raises `KafkaException`."""
    while True:
        try:
            sender.produce(topic, **message)
        except BufferError:
            sender.poll(0.1)
        else:
            return


@contextmanager
def kafka_errors(settings: KafkaSettings, doing: str, client: "AdminClient | Producer | None" = None) -> Iterator[None]:
    """Turn errors of the client into a `KafkaError`, which says what was done, where and why, and never a secret.

    `client` is asked why its connections failed; a consumer says so by itself while it reads.
    """
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        if client is not None:
            client.poll(0)
        raise kafka_error(settings, doing, error) from None


def retry(settings: KafkaSettings, doing: str, call: Callable[[], Result]) -> Result:
    """Return the result of a call, made again for `request_seconds` while brokers start or change roles.

    Raises `KafkaError`.
    """
    from confluent_kafka import KafkaError as Codes
    from confluent_kafka import KafkaException

    passing = (
        Codes.COORDINATOR_LOAD_IN_PROGRESS,
        Codes.COORDINATOR_NOT_AVAILABLE,
        Codes.NOT_COORDINATOR,
        Codes.LEADER_NOT_AVAILABLE,
        Codes.NOT_LEADER_FOR_PARTITION,
        Codes.UNKNOWN_TOPIC_OR_PART,  # not yet known to the broker that is asked
        Codes._WAIT_COORD,
        Codes._TRANSPORT,
    )

    def may_pass(error: Exception) -> bool:
        return isinstance(error, KafkaException) and error.args[0].code() in passing

    with kafka_errors(settings, doing):
        return retrying.retry(call, repeat(PAUSE_SECONDS), may_pass, seconds=settings.request_seconds)


def kafka_error(settings: KafkaSettings, doing: str, error: object) -> KafkaError:
    """Return a `KafkaError` for an error in hand: a `KafkaException`, or the error of a message or a delivery."""
    inner = error.args[0] if isinstance(error, Exception) and error.args else error
    text = inner.str() if hasattr(inner, "str") else str(inner)
    at, trouble = _troubles.get(settings.bootstrap_servers or "", (0.0, ""))
    if trouble and time.monotonic() - at < TROUBLE_SECONDS:
        text = f"{text} ({trouble})"
    return KafkaError(f"{doing} failed at {settings.bootstrap_servers}: {_without_secrets(settings, text)}")


def _note_trouble(servers: str, error: Any) -> None:
    from confluent_kafka import KafkaError as Codes

    if error.code() != Codes._ALL_BROKERS_DOWN:
        _troubles[servers] = (time.monotonic(), error.str())


def require_servers(settings: KafkaSettings) -> str:
    """Return the addresses of the cluster. Raises `KafkaNotConfiguredError`."""
    if not settings.bootstrap_servers:
        raise KafkaNotConfiguredError(
            "no Kafka cluster is configured; VECTORIZE_KAFKA__BOOTSTRAP_SERVERS=host:9092 names one "
            "(`make kafka` starts one on localhost:9092)"
        )
    return settings.bootstrap_servers


def _common(settings: KafkaSettings) -> dict[str, Any]:
    servers = require_servers(settings)
    properties: dict[str, Any] = {
        "bootstrap.servers": servers,
        "error_cb": partial(_note_trouble, servers),
        "client.id": "vectorize",
        "security.protocol": settings.security_protocol.lower(),
        "socket.timeout.ms": round(settings.request_seconds * 1000),
        "allow.auto.create.topics": False,
    }
    if settings.security_protocol.startswith("SASL"):
        properties |= _sasl(settings)
    if settings.security_protocol.endswith("SSL"):
        properties |= {
            name: value
            for name, value in {
                "ssl.ca.location": _text(settings.ssl_ca_location),
                "ssl.certificate.location": _text(settings.ssl_certificate_location),
                "ssl.key.location": _text(settings.ssl_key_location),
                "ssl.key.password": _secret(settings.ssl_key_password),
            }.items()
            if value is not None
        }
    return properties


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    if settings.sasl_mechanism != "OAUTHBEARER":
        return {
            "sasl.mechanism": settings.sasl_mechanism,
            "sasl.username": settings.sasl_username,
            "sasl.password": _secret(settings.sasl_password),
        }
    properties = {
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": settings.oauth_token_endpoint,
        "sasl.oauthbearer.client.id": settings.oauth_client_id,
        "sasl.oauthbearer.client.secret": _secret(settings.oauth_client_secret),
    }
    return properties | ({"sasl.oauthbearer.scope": settings.oauth_scope} if settings.oauth_scope else {})


@contextmanager
def _refused_properties(settings: KafkaSettings) -> Iterator[None]:
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        text = error.args[0].str() if error.args and hasattr(error.args[0], "str") else str(error)
        raise SettingsError(
            f"the Kafka client refuses its properties (settings kafka.…, {settings.config_file}): "
            f"{_without_secrets(settings, text)}"
        ) from None


def _without_secrets(settings: KafkaSettings, text: str) -> str:
    given = (settings.sasl_password, settings.oauth_client_secret, settings.ssl_key_password)
    return without_secrets(
        shown_text(text, settings.oauth_token_endpoint),
        *map(_secret, given),
        *read_config(settings.config_file).secrets,
    )


def _secret(value: Any) -> str | None:
    return None if value is None else value.get_secret_value()


def _text(value: object) -> str | None:
    return None if value is None else str(value)
