"""Topics change while they are read: partitions are added, and the broker deletes what nobody has read yet."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from tests.pipeline.requests.installation import SECONDS, Installation, install, text_request
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import KafkaError as OurKafkaError
from vectorize_pipelines.kafka import partitions, reading
from vectorize_pipelines.kafka import sources as kafka_source
from vectorize_pipelines.kafka.clients import admin, producer
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import LagWatch
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.messaging.cancellations import Cancellations, cancel
from vectorize_pipelines.pipeline.requests.stream import RequestStream
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import KafkaSettings

MakeInstallation = Callable[..., Installation]


@pytest.fixture
def make(tmp_path: Path, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> MakeInstallation:
    """An installation whose runs look for new partitions all the time."""
    monkeypatch.setattr(partitions, "PARTITIONS_SECONDS", 0.1)
    servers = kafka_settings.bootstrap_servers
    assert servers is not None

    def made(**kafka: object) -> Installation:
        installation = install(tmp_path / "home", servers, kafka_settings.topic_prefix, kafka=kafka)
        create_topics(installation.settings.kafka)
        return installation

    return made


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def add_partition(installation: Installation, topic: str) -> int:
    """Gives a topic one more partition, whose number is returned once the broker tells of it."""
    client = admin(installation.settings.kafka)
    number = len(client.list_topics(topic, timeout=SECONDS).topics[topic].partitions)
    client.create_partitions([NewPartitions(topic, number + 1)])[topic].result(SECONDS)
    until(lambda: len(client.list_topics(topic, timeout=SECONDS).topics[topic].partitions) == number + 1)
    installation._producer = None  # which knows the partitions that there were
    return number


@contextmanager
def draining(installation: Installation, shard: Shard = WHOLE) -> Iterator[RequestStream]:
    """A run that follows the topic until it is left; its error is raised then."""
    left = threading.Event()
    errors: list[BaseException] = []
    stream = installation.open_drain(
        once=False, idle_seconds=3600, shard=shard, should_stop=lambda: "left" if left.is_set() else None
    )

    def run() -> None:
        try:
            with stream:
                for _ in written(DirectWriter(installation.settings, installation.store), stream):
                    pass
        except BaseException as error:  # noqa: BLE001 (raised where the run is left)
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stream
    finally:
        left.set()
        thread.join()
    assert not errors, errors


def completed(installation: Installation) -> set[str]:
    return {name for name, states in installation.final_events().items() if states == ["completed"]}


@pytest.mark.parametrize("priority", [False, True])
def test_partitions_added_while_a_run_drains_are_read_by_it_once(make: MakeInstallation, priority: bool) -> None:
    installation = make()
    topic = installation.names.lane(Modality.TEXT, int(priority))
    with draining(installation) as stream:
        installation.send(text_request("before", "a boat"), partition=0, priority=priority)
        until(lambda: stream.counts.messages == 1)
        number = add_partition(installation, topic)
        added = [text_request(f"added-{n}", f"text {n}") for n in range(50)]
        installation.send(*added, partition=number, priority=priority)
        installation.send(text_request("after", "the sea"), partition=1, priority=priority)
        until(lambda: stream.counts.messages == 52)
    names = {"before", "after", *(request["task_id"] for request in added)}
    assert set(installation.texts()) == {(name, 0) for name in names}
    assert completed(installation) == names
    assert not installation.outstanding()
    assert installation.drain().figures()["messages"] == 0


def test_an_added_partition_is_read_by_the_run_whose_part_it_is_in(make: MakeInstallation) -> None:
    installation = make()
    topic = installation.names.requests(Modality.TEXT)
    with draining(installation, Shard(1, 2)) as odd, draining(installation, Shard(0, 2)) as even:
        number = add_partition(installation, topic)
        further = add_partition(installation, topic)
        installation.send(text_request("one", "a boat"), partition=number)
        installation.send(text_request("other", "the sea"), partition=further)
        until(lambda: odd.counts.messages + even.counts.messages == 2)
        assert (odd.counts.messages, even.counts.messages) == (1, 1)
    assert completed(installation) == {"one", "other"}


def test_a_run_goes_on_where_partitions_cannot_be_looked_for(
    make: MakeInstallation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from confluent_kafka import KafkaError, KafkaException

    installation = make()
    looks = 0
    with draining(installation) as stream:

        def failing(*_: object) -> list[int]:
            nonlocal looks
            looks += 1
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

        with monkeypatch.context() as patched:
            patched.setattr(kafka_source, "_partitions", failing)
            until(lambda: looks >= 3)
            installation.send(text_request("meanwhile", "a boat"), partition=0)
            until(lambda: stream.counts.messages == 1)
        number = add_partition(installation, installation.names.requests(Modality.TEXT))
        installation.send(text_request("added", "the sea"), partition=number)
        until(lambda: stream.counts.messages == 2)
    assert "could not be found out" in caplog.text


def test_the_sensor_sees_what_waits_in_an_added_partition(make: MakeInstallation) -> None:
    installation = make()
    settings = installation.settings.kafka
    watch = LagWatch(settings, followed_topic(settings, "text"))
    assert not any(each.lag for each in watch.look())
    number = add_partition(installation, installation.names.requests(Modality.TEXT))
    installation.send(text_request("one", "a boat"), partition=number)
    until(lambda: [each.partition for each in watch.look() if each.lag] == [number])


def test_a_cancellation_in_an_added_partition_counts(make: MakeInstallation) -> None:
    installation = make()
    settings = installation.settings.kafka
    names = TopicNames(settings.topic_prefix)
    sender = producer(settings)
    with closing(Cancellations(settings)) as cancellations:
        cancellations.refresh()
        add_partition(installation, names.control)
        for n in range(20):  # of the keys, some go to each partition
            cancel(sender, names, f"task-{n}")
        assert sender.flush(SECONDS) == 0

        def all_known() -> bool:
            cancellations.refresh()
            return all(cancellations.cancelled(f"task-{n}", 1000) for n in range(20))

        until(all_known)


def test_messages_deleted_while_a_run_goes_on_are_told_with_their_place(
    make: MakeInstallation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client asks for one message at a time, or it would have all of them before they are deleted."""
    config = tmp_path / "kafka.yaml"
    one_by_one = "{queued.min.messages: 1, queued.max.messages.kbytes: 1, max.partition.fetch.bytes: 1000}"
    ours = KafkaSettings().config_file.read_text()
    config.write_text(ours.replace("consumer: {}", f"consumer: {one_by_one}"))
    assert one_by_one in config.read_text()
    installation = make(config_file=str(config))
    topic = installation.names.requests(Modality.TEXT)
    goes_on, encoding = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        encoding.set()
        assert goes_on.wait(60)

    installation.on_encode = wait
    with draining(installation) as stream:
        try:
            installation.send(text_request("t0", "a boat"), partition=0)
            assert encoding.wait(60)
            for n in range(1, 40):
                installation.send(text_request(f"t{n}", f"{n} " * 500), partition=0)
            client = admin(installation.settings.kafka)
            client.delete_records([TopicPartition(topic, 0, 35)])[TopicPartition(topic, 0)].result(SECONDS)
        finally:
            goes_on.set()
        until(lambda: "t39" in completed(installation))
    (lost,) = stream.losses()
    figures = stream.figures()
    embedded = {int(name[1:]) for name, _ in installation.texts()}
    begin = 35 - int(figures["lost_unread"])
    assert begin < 35
    assert embedded == {*range(begin), *range(35, 40)}
    assert lost == f"{topic}, partition 0, offsets {begin} to 34"
    assert lost in caplog.text
    assert not installation.outstanding()


def test_messages_deleted_between_two_runs_are_told_with_their_place(
    make: MakeInstallation, caplog: pytest.LogCaptureFixture
) -> None:
    installation = make()
    topic = installation.names.requests(Modality.TEXT)
    installation.send(text_request("first", "a boat"), partition=0)
    installation.drain()
    installation.send(*[text_request(f"t{n}", "a boat") for n in range(10)], partition=0)
    client = admin(installation.settings.kafka)
    client.delete_records([TopicPartition(topic, 0, 8)])[TopicPartition(topic, 0)].result(SECONDS)
    stream = installation.drain()
    assert stream.losses() == [f"{topic}, partition 0, offsets 1 to 7"]
    assert stream.figures()["lost_unread"] == 7
    assert stream.losses()[0] in caplog.text
    assert installation.drain().losses() == []


def test_a_loss_with_nothing_behind_it_is_told_once(make: MakeInstallation) -> None:
    installation = make()
    topic = installation.names.requests(Modality.TEXT)
    installation.send(*[text_request(f"t{n}", "a boat") for n in range(10)], partition=0)
    installation.drain()
    installation.send(*[text_request(f"later-{n}", "a boat") for n in range(10)], partition=0)
    client = admin(installation.settings.kafka)
    client.delete_records([TopicPartition(topic, 0, 20)])[TopicPartition(topic, 0)].result(SECONDS)
    assert installation.drain().losses() == [f"{topic}, partition 0, offsets 10 to 19"]
    assert installation.drain().losses() == []
    assert not installation.outstanding()


def test_a_partition_counts_only_once_it_is_read(make: MakeInstallation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of one of two new partitions cannot be had: both are taken up by a later look, and the run ends."""
    from confluent_kafka import KafkaError, KafkaException

    installation = make()
    topic = installation.names.requests(Modality.TEXT)
    failed = threading.Event()
    bounds = kafka_source._bounds
    with draining(installation) as stream:

        def failing(settings: KafkaSettings, client: Any, partition: Any) -> tuple[int, int]:
            if partition.topic == topic and partition.partition == further:
                failed.set()
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))
            return bounds(settings, client, partition)

        number = len(admin(installation.settings.kafka).list_topics(topic, timeout=SECONDS).topics[topic].partitions)
        further = number + 1
        with monkeypatch.context() as patched:
            patched.setattr(kafka_source, "_bounds", failing)
            assert add_partition(installation, topic) == number
            assert add_partition(installation, topic) == further
            assert failed.wait(60)
        installation.send(text_request("one", "a boat"), partition=number)
        installation.send(text_request("other", "the sea"), partition=further)
        until(lambda: stream.counts.messages == 2)
        until(stream._source.at_end)
    assert completed(installation) == {"one", "other"}


def test_what_reads_a_topic_goes_on_where_partitions_cannot_be_looked_for(
    make: MakeInstallation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installation = make()
    settings = installation.settings.kafka
    names = TopicNames(settings.topic_prefix)
    sender = producer(settings)
    waited: list[float | None] = []

    def failing(_: object, __: object, ___: object, seconds: float | None = None) -> None:
        waited.append(seconds)
        raise OurKafkaError("the brokers are away")

    with closing(Cancellations(settings)) as cancellations:
        cancellations.refresh()
        with monkeypatch.context() as patched:
            patched.setattr(reading, "partitions_of", failing)
            cancel(sender, names, "task")
            assert sender.flush(SECONDS) == 0

            def known() -> bool:
                cancellations.refresh()
                return cancellations.cancelled("task", 1000) and len(waited) > 1

            until(known)
    assert all(seconds is not None and seconds <= 1 for seconds in waited)
    assert "could not be found out" in caplog.text


def test_a_topic_that_is_deleted_and_made_again_while_it_is_read_ends_the_run_and_loses_nothing(
    make: MakeInstallation,
) -> None:
    installation = make()
    kafka, topic = installation.settings.kafka, installation.names.requests(Modality.TEXT)
    installation.send(text_request("before", "a boat"), partition=0)
    installation.drain()
    with closing(kafka_source.DrainSource(kafka, followed_topic(kafka, Modality.TEXT), WHOLE)) as source:
        client = admin(kafka)
        client.delete_topics([topic])[topic].result(SECONDS)
        until(lambda: topic not in client.list_topics(timeout=SECONDS).topics)
        create_topics(kafka)
        installation._producer = None
        sent = [text_request(f"new-{number}", "the sea") for number in range(3)]
        installation.send(*sent, partition=0)
        with pytest.raises(partitions.TopicReplacedError, match=rf"{topic} at .* was deleted and made again"):
            until(lambda: bool(source.poll(10).messages))
    installation.drain()
    assert {name for name, _ in installation.texts()} >= {request["task_id"] for request in sent}
    assert not installation.outstanding()
