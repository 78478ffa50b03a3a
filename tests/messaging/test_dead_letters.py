"""Dead letters keep the message byte by byte; each is replayed once, whenever the replay is killed."""

import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.brokers import SOME_TIME_MS, bury, letter, make_topic, read, send
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.images.errors import CorruptImageError
from vectorize_pipelines.kafka.clients import consumer
from vectorize_pipelines.kafka.topics import Family, TopicNames, create_topics
from vectorize_pipelines.messaging.dead_letters import ATTEMPTS_HEADER, DeadLetter, attempts_of, read_dead_letters
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.messaging.outcomes import OutcomeProducer, Outcomes
from vectorize_pipelines.messaging.replay import replay
from vectorize_pipelines.messaging.replayed import ReplayedOffsets
from vectorize_pipelines.settings import KafkaSettings


def test_a_dead_letter_keeps_the_message_and_says_why(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    sent = [letter(kafka_settings, 4), letter(kafka_settings, 5, CorruptImageError("is cut off"), value=None)]
    bury(kafka_settings, *sent)
    stored = sorted(
        read_dead_letters(kafka_settings), key=lambda each: each.letter.origin.offset if each.letter else -1
    )
    assert [each.letter for each in stored] == sent
    (message,) = [each for each in read(kafka_settings, topics.dead_letter) if each.key() == b"key-4"]
    assert message.value() == b"\x00\xff{"
    headers = message.headers()
    assert headers[:3] == [("trace", b"\x01\xfe"), ("trace", b"again"), ("empty", None)]
    assert dict(headers[3:]) == {
        "__connect.errors.topic": topics.requests(Modality.TEXT).encode(),
        "__connect.errors.partition": b"4",
        "__connect.errors.offset": b"4",
        "__connect.errors.connector.name": b"vectorize",
        "__connect.errors.task.id": b"run-1",
        "__connect.errors.stage": b"decode",
        "__connect.errors.exception.class.name": b"vectorize_pipelines.messaging.messages.InvalidMessageError",
        "__connect.errors.exception.message": b"data: must not be blank",
        "vectorize.attempts": b"1",
        "vectorize.error.class": b"InvalidMessageError",
        "vectorize.timestamp": str(SOME_TIME_MS + 4).encode(),
    }


def test_a_replayed_message_is_the_original_and_counts_its_attempts(
    kafka_settings: KafkaSettings, topics: TopicNames
) -> None:
    bury(kafka_settings, letter(kafka_settings, 7))
    assert replay(kafka_settings).topics == {topics.requests(Modality.TEXT): 1}
    (message,) = read(kafka_settings, topics.requests(Modality.TEXT))
    assert (message.key(), message.value(), message.timestamp()[1]) == (b"key-7", b"\x00\xff{", SOME_TIME_MS + 7)
    assert message.headers() == [
        *[("trace", b"\x01\xfe"), ("trace", b"again"), ("empty", None)],
        (ATTEMPTS_HEADER, b"1"),
    ]
    origin = Origin(message.topic(), 0, 0, 0)
    again = DeadLetter.of(origin, b"key-7", b"", message.headers(), ValueError("x"), "encode", None)
    assert again.attempts == 2
    assert again.headers == (("trace", b"\x01\xfe"), ("trace", b"again"), ("empty", None))
    assert list(read_dead_letters(kafka_settings)) == []
    assert [each.is_replayed for each in read_dead_letters(kafka_settings, include_replayed=True)] == [True]
    assert replay(kafka_settings).replayed == 0


def test_what_a_filter_leaves_out_is_replayed_later_and_once(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    corrupt = CorruptImageError("is cut off")
    bury(kafka_settings, *(letter(kafka_settings, n, corrupt if n % 3 else None) for n in range(60)))
    assert len(list(read_dead_letters(kafka_settings, reason="CorruptImageError"))) == 40
    first = replay(kafka_settings, reason="CorruptImageError", limit=10)
    assert (first.replayed, first.left_out) == (10, 50)
    chosen = [each.id for each in read_dead_letters(kafka_settings, reason="InvalidMessageError")][3:5]
    assert replay(kafka_settings, ids=chosen).replayed == 2
    assert replay(kafka_settings, ids=chosen).replayed == 0
    assert replay(kafka_settings, reason="CorruptImageError").replayed == 30
    assert len(list(read_dead_letters(kafka_settings))) == 18
    assert replay(kafka_settings).replayed == 18
    keys = [message.key() for message in read(kafka_settings, topics.requests(Modality.TEXT))]
    assert sorted(keys) == sorted(f"key-{n}".encode() for n in range(60))


def test_messages_of_others_are_listed_and_left(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    send(
        kafka_settings, topics.dead_letter, {"key": b"x", "value": b"y", "headers": [("__connect.errors.topic", b"t")]}
    )
    bury(kafka_settings, letter(kafka_settings, 1))
    counts = replay(kafka_settings)
    assert (counts.replayed, counts.foreign) == (1, 1)
    assert [each.letter for each in read_dead_letters(kafka_settings)] == [None]


def test_an_installation_has_the_letters_of_one_family_alone(home: Path, kafka_settings: KafkaSettings) -> None:
    with pytest.raises(KafkaError, match=r"neither .* is there"):
        list(read_dead_letters(kafka_settings))
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    topic = kafka_settings.assessment_dead_letter_topic
    buried = letter(kafka_settings, 1)
    send(kafka_settings, topic, {"value": b"{", "headers": list(buried.to_message(topic).headers)})
    (stored,) = read_dead_letters(kafka_settings)
    assert stored.family is Family.ASSESSMENTS
    assert replay(kafka_settings, ids=["none"]).replayed == 0


def test_a_letter_whose_topic_is_gone_is_kept(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    origin = Origin(f"{kafka_settings.topic_prefix}.gone", 0, 0, SOME_TIME_MS)
    bury(kafka_settings, DeadLetter.of(origin, None, b"v", None, ValueError("x"), "encode", None))
    with pytest.raises(KafkaError, match=r"the topic .*\.gone is missing"):
        replay(kafka_settings)
    assert len(list(read_dead_letters(kafka_settings))) == 1


def test_a_letter_that_its_topic_would_delete_is_kept(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    topic = topics.requests(Modality.TEXT)
    old = Origin(topic, 0, 0, SOME_TIME_MS - 30 * 24 * 3_600_000)
    bury(kafka_settings, DeadLetter.of(old, b"old", b"v", None, ValueError("x"), "encode", None))
    bury(kafka_settings, letter(kafka_settings, 1))
    counts = replay(kafka_settings)
    assert (counts.replayed, counts.expired) == (1, 1)
    assert [each.letter.key for each in read_dead_letters(kafka_settings) if each.letter] == [b"old"]


KILLED = """
import os, signal, sys
from confluent_kafka import Producer
from vectorize_pipelines.messaging import replay as module
from vectorize_pipelines.settings import load_settings

module.BATCH_LETTERS = 20
step, number = sys.argv[1], int(sys.argv[2])
calls = 0

class Killed(Producer):
    def __getattribute__(self, name):
        global calls
        if name == step.removeprefix("after-"):
            calls += 1
            if calls == number and not step.startswith("after-"):
                super().flush(10)
                os.kill(os.getpid(), signal.SIGKILL)
            if calls == number:
                method = super().__getattribute__(name)
                def called(*arguments, **named):
                    method(*arguments, **named)
                    os.kill(os.getpid(), signal.SIGKILL)
                return called
        return super().__getattribute__(name)

make = module.producer
import confluent_kafka
confluent_kafka.Producer = Killed
print(module.replay(load_settings().kafka).replayed)
"""


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("begin_transaction", 2),
        ("produce", 33),
        ("send_offsets_to_transaction", 2),
        ("commit_transaction", 2),
        ("after-commit_transaction", 2),
    ],
)
def test_a_replay_that_is_killed_neither_loses_nor_doubles(
    kafka_settings: KafkaSettings, topics: TopicNames, home: Path, step: str, number: int
) -> None:
    bury(kafka_settings, *(letter(kafka_settings, n) for n in range(90)))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(number)], capture_output=True, text=True, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    outstanding = len(list(read_dead_letters(kafka_settings)))
    assert outstanding == (50 if step.startswith("after") else 70)
    assert replay(kafka_settings).replayed == outstanding
    messages = read(kafka_settings, topics.requests(Modality.TEXT))
    assert sorted(message.key() for message in messages) == sorted(f"key-{n}".encode() for n in range(90))


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 80)), st.integers(0, 80), st.sets(st.integers(0, 80), max_size=3)), max_size=5
    )
)
def test_what_was_replayed_is_known_exactly(passes: list[tuple[set[int], int, set[int]]]) -> None:
    """Passes that each replay some of the letters up to an end; some offsets hold no letter."""
    replayed, done = ReplayedOffsets(), set[int]()
    holes = passes[0][2] if passes else set()
    for wanted, end, _ in passes:
        there = set(range(replayed.below, end)) - holes
        chosen = (wanted & there) - done
        replayed.add(chosen, there - chosen - done, max(end, replayed.below))
        done |= chosen
        replayed = ReplayedOffsets.decode(replayed.below, replayed.encode())
        for offset in set(range(100)) - holes:
            assert (offset in replayed) == (offset in done)


def test_damaged_metadata_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        ReplayedOffsets.decode(3, "not ours!")
    assert 3 not in ReplayedOffsets.decode(3, None)


def test_an_attempts_header_of_others_counts_as_none() -> None:
    for content in (b"", b"-1", b"x", b"9" * 30, None):
        assert attempts_of([(ATTEMPTS_HEADER, content)]) == 0


@pytest.mark.parametrize("limit", ["client", "broker"])
def test_a_message_that_does_not_fit_is_buried_without_its_value(kafka_settings: KafkaSettings, limit: str) -> None:
    topics = TopicNames(kafka_settings.topic_prefix)
    noise = random.Random(5).randbytes(12_000_000 if limit == "client" else 2_000_000)
    if limit == "broker":
        make_topic(kafka_settings, topics.dead_letter, max_message_bytes="1500000")
    create_topics(kafka_settings)
    letters = [letter(kafka_settings, 0), letter(kafka_settings, 1, value=noise), letter(kafka_settings, 2)]
    outcomes = OutcomeProducer(kafka_settings, "text.0/1")
    with closing(consumer(kafka_settings)) as group:
        outcomes.send(Outcomes(dead_letters=letters), group.consumer_group_metadata())
    outcomes.close()
    stored = [each.letter for each in read_dead_letters(kafka_settings) if each.letter is not None]
    assert sorted(stored, key=lambda each: each.origin.offset) == [letters[0], letters[1].shortened(), letters[2]]
    assert letters[1].shortened().omitted_bytes == len(noise)
    # Sent back without its value it would delete what its key names.
    counts = replay(kafka_settings)
    assert (counts.replayed, counts.omitted) == (2, 1)
    assert [each.key() for each in read(kafka_settings, topics.requests(Modality.TEXT)) if each.value() is None] == []
    assert replay(kafka_settings).replayed == 0
