"""The producer of detections: it never holds up its caller, keeps the newest, and counts what it does not send."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.messaging.brokers import read
from tests.messaging.detections import detection, noise
from tests.servers.ports import free_ports
from vectorize_pipelines.errors import KafkaNotConfiguredError, SettingsError
from vectorize_pipelines.kafka import clients as clients_of_kafka
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.messaging import detection_producer
from vectorize_pipelines.messaging.assessments import DetectionKafkaProducer
from vectorize_pipelines.messaging.detections import DetectionResultMessage
from vectorize_pipelines.settings import KafkaSettings

SECONDS = 60.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_sent_arrives_in_order_by_camera(kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    with DetectionKafkaProducer() as producer:
        for number in range(200):
            assert producer.send_detection_result(detection(f"cam-{number % 3}", f"m-{number}"))
        message = DetectionResultMessage.from_dict(detection("cam-0", "a message"))
        assert producer.send_detection_result(message)
        assert not producer.send_detection_result({"camera_id": "cam-1"})
    assert (producer.counts.sent, producer.counts.refused) == (201, 1)
    assert (producer.counts.dropped, producer.counts.failed) == (0, 0)
    assert not producer.send_detection_result(message), "it is closed"
    assert producer.counts.dropped == 1
    found = read(kafka_settings, kafka_settings.detections_topic)
    assert {each.key() for each in found} == {b"cam-0", b"cam-1", b"cam-2"}
    messages = [DetectionResultMessage.from_json(each.value()) for each in found]
    for camera in range(3):
        own = [each.message_id for each in messages if each.camera_id == f"cam-{camera}" and each != message]
        assert own == [f"m-{number}" for number in range(camera, 200, 3)]


def test_the_newest_are_kept_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = DetectionKafkaProducer(f"localhost:{free_ports(1)[0]}", max_messages=10)
    started = time.monotonic()
    for number in range(500):
        assert producer.send_detection_result(detection(message_id=f"m-{number}"))
    assert time.monotonic() - started < SECONDS / 2, "nobody waited for the broker"
    # Those that the client of Kafka has in hand are no longer in the buffer.
    until(lambda: producer.counts.dropped >= 500 - 10 - 64)
    producer.close(timeout=0.0)
    counts = producer.counts
    assert counts.sent == 0
    assert counts.dropped + counts.failed == 500


def test_the_buffer_is_bounded_in_bytes() -> None:
    producer = DetectionKafkaProducer(f"localhost:{free_ports(1)[0]}", max_bytes=100_000)
    assert not producer.send_detection_result(detection(picture=noise(200_000))), "it is larger than the buffer"
    assert producer.counts.dropped == 1
    for _ in range(100):
        assert producer.send_detection_result(detection(picture=noise(40_000)))
    assert producer.counts.dropped > 1
    producer.close(timeout=0.0)


def test_what_the_brokers_refuse_is_counted(kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    with DetectionKafkaProducer() as producer:
        assert producer.send_detection_result(detection(picture=noise(12_000_000)))
        assert producer.send_detection_result(detection())
    assert (producer.counts.failed, producer.counts.sent) == (1, 1)


def test_it_goes_on_after_a_fatal_error_whatever_happens_then(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        """A client that met a fatal error, as `Producer` reports it; no broker can be had to cause one."""

        def produce(self, *arguments: object, **options: object) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL, "an epoch is over", fatal=True))

        def poll(self, seconds: float) -> int:
            return 0

        def purge(self) -> None: ...

        def flush(self, seconds: float) -> int:
            return 0

    def refused(*arguments: object, **options: object) -> None:
        raise SettingsError("the file of the settings is being written")

    clients: list[Callable[..., object]] = [lambda *arguments, **options: Broken(), refused, refused]
    real = clients_of_kafka.producer
    monkeypatch.setattr(
        detection_producer,
        "producer",
        lambda *arguments, **options: (clients.pop(0) if clients else real)(*arguments, **options),
    )
    monkeypatch.setattr(detection_producer, "RETRY_SECONDS", 0.01)
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    with DetectionKafkaProducer() as producer:
        for number in range(3):
            assert producer.send_detection_result(detection(message_id=f"m-{number}"))
        until(lambda: producer.counts.sent == 2)
    assert (producer.counts.failed, producer.counts.dropped) == (1, 0)
    assert [each.message.count("being written") for each in caplog.records if "tried again" in each.message] == [1]


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaNotConfiguredError):
        DetectionKafkaProducer()
    with DetectionKafkaProducer(enabled=False) as producer:
        assert not producer.send_detection_result(detection())
    monkeypatch.setenv("VECTORIZE_ASSESSMENTS__SEND_DETECTIONS", "false")
    with DetectionKafkaProducer("localhost:1") as producer:
        assert not producer.send_detection_result(detection())
    assert producer.counts.refused == 0


def test_it_imports_neither_dagster_nor_torch() -> None:
    code = (
        "import sys; from vectorize_pipelines.messaging.assessments import DetectionKafkaProducer as producer;"
        "producer('localhost:1').close(0.0);"
        "sys.exit(', '.join({'dagster', 'torch', 'pandas', 'PIL', 'sqlalchemy'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
