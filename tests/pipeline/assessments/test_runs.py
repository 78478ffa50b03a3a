"""Runs over tasks in a real topic, with a real provider: each task has one result or one dead letter."""

import base64
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from tests.messaging.brokers import make_topic, read
from tests.pipeline.assessments.conftest import MakeInstallation
from tests.pipeline.assessments.installation import Installation, failing, letter_headers
from tests.pipeline.assessments.tasks import PICTURE, task
from tests.servers.provider import Fault
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError, KeysError, NoSuitableKeyError, ProviderUnavailableError
from vectorize_pipelines.kafka.clients import consumer
from vectorize_pipelines.kafka.followed import ASSESSMENTS, followed_topic
from vectorize_pipelines.kafka.lag import partition_lags
from vectorize_pipelines.kafka.lookup import MessageLookup
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.kafka.transactions import TransactionalProducer
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.messaging.dead_letters import ATTEMPTS_HEADER
from vectorize_pipelines.pipeline.assessments.assessing import EXPIRED
from vectorize_pipelines.pipeline.assessments.progress import PartitionProgress
from vectorize_pipelines.pipeline.assessments.runs import ReplayRequest
from vectorize_pipelines.providers.chat import ChatModel
from vectorize_pipelines.state.assessments import AssessmentState


def tasks(count: int, name: str = "task", **further: Any) -> list[AssessmentTaskMessage]:
    """Tasks of different content."""
    return [task(f"{name}-{n}", bbox=[0, 0, 1000 + n, 10], **further) for n in range(count)]


def lag(installation: Installation) -> int:
    return sum(each.lag for each in partition_lags(installation.kafka, followed_topic(installation.kafka, ASSESSMENTS)))


def test_every_task_has_one_result_a_row_and_is_acknowledged(installation: Installation) -> None:
    sent = tasks(40)
    installation.send(*sent)
    run = installation.drain()
    results = installation.results()
    assert Counter(each.task_id for each in results) == Counter(each.task_id for each in sent)
    rows = installation.rows(*(each.task_id for each in sent))
    for result in results:
        row = rows[result.task_id]
        assert (row.level, row.score, row.summary) == (result.risk_level, result.risk_score, result.summary)
        assert result.error is None
        assert result.key_name == "name of key-for-tests"
        assert result.prompt_tokens > 0
        assert result.latency_ms > 0
    assert lag(installation) == 0
    (day,) = run.days.values()
    assert (day.completed, day.failed, day.expired) == (40, 0, 0)
    again = installation.drain()
    assert not again.days
    assert installation.provider.report().requests == 40


def test_what_cannot_be_judged_is_a_dead_letter_and_its_neighbours_are_judged(installation: Installation) -> None:
    unreadable = task("no-picture", group_image_base64=base64.b64encode(b"GIF89a").decode())
    installation.provider.change(faults=[Fault("refused", contains="[0, 0, 1001", count=None)])
    installation.send(b"{", *tasks(3), b"\xff" * 100, unreadable)
    installation.drain()
    assert {each.task_id for each in installation.results()} == {"task-0", "task-2"}
    letters = {each.value(): letter_headers(each) for each in installation.letters()}
    assert len(letters) == 4
    assert letters[b"{"]["__connect.errors.stage"] == "decode"
    reasons = Counter(headers["vectorize.error.class"] for headers in letters.values())
    assert reasons == {"InvalidMessageError": 2, "UnreadablePictureError": 1, "ContentRefusedError": 1}
    assert installation.rows("no-picture")["no-picture"].state is AssessmentState.FAILED
    assert lag(installation) == 0


def test_what_was_paid_for_an_answer_that_will_not_do_is_noted(make_installation: MakeInstallation) -> None:
    installation = make_installation(providers={"prices": {"judge": {"input_per_million": 1000}}})
    installation.provider.change(faults=[Fault("other_schema", count=None)])
    (sent,) = tasks(1)
    installation.send(sent)
    installation.drain()
    row = installation.rows(sent.task_id)[sent.task_id]
    assert (row.state, row.error_class) == (AssessmentState.FAILED, "InvalidAnswerError")
    assert (row.key_name, row.completion_tokens) == ("name of key-for-tests", 100)
    assert row.cost == pytest.approx(row.prompt_tokens / 1000)
    assert row.cost > 0


def test_a_dead_letter_that_is_replayed_is_judged_and_its_duplicates_are_not(installation: Installation) -> None:
    (once,) = tasks(1)
    installation.provider.change(faults=[Fault("other_schema", count=2)])
    installation.send(once)
    installation.drain()
    (letter,) = installation.letters()
    assert letter_headers(letter)["vectorize.error.class"] == "InvalidAnswerError"
    installation.send(once)
    installation.drain()
    assert installation.results() == []
    installation.send(once, once, headers=[(ATTEMPTS_HEADER, b"1")])
    installation.drain()
    assert [each.task_id for each in installation.results()] == ["task-0"]
    assert len(installation.letters()) == 1


def test_a_task_that_came_several_times_has_one_result(installation: Installation) -> None:
    sent = tasks(5)
    installation.send(*sent, *sent, partition=0)
    installation.send(*sent, partition=1)
    first = installation.drain()
    installation.send(*sent, partition=2)
    second = installation.drain()
    assert Counter(each.task_id for each in installation.results()) == Counter(each.task_id for each in sent)
    assert first.figures()["duplicates"] == 10
    assert second.figures()["duplicates"] == 5
    assert max(installation.provider.report().answered.values()) == 1
    assert lag(installation) == 0


def test_equal_content_is_judged_once(installation: Installation) -> None:
    installation.send(*(task(f"same-{n}", camera=f"camera-{n}") for n in range(6)))
    run = installation.drain()
    results = installation.results()
    assert len(results) == 6
    assert len({(each.risk_level, each.summary) for each in results}) == 1
    assert installation.provider.report().requests == 1
    (day,) = run.days.values()
    assert day.cached == 5


def test_a_task_whose_time_is_over_is_told_as_expired_and_not_judged(installation: Installation) -> None:
    installation.send(task("late", seconds=-1), *tasks(1))
    run = installation.drain()
    late, judged = sorted(installation.results(), key=lambda each: each.task_id)
    assert late.error is not None
    assert late.error["class"] == EXPIRED
    assert late.risk_level is None
    assert judged.error is None
    assert installation.provider.report().requests == 1
    (day,) = run.days.values()
    assert day.expired == 1
    assert lag(installation) == 0


def test_a_task_that_expired_is_judged_when_it_is_made_again_with_another_deadline(installation: Installation) -> None:
    late, again = task("late", seconds=-1), task("late", seconds=600)
    installation.send(late, late)
    installation.drain()
    installation.send(late, again, again)
    installation.drain()
    results = installation.results()
    assert sorted(each.error is None for each in results) == [False, True]
    assert installation.rows("late")["late"].state is AssessmentState.COMPLETED
    installation.send(again, late)
    installation.drain()
    assert len(installation.results()) == 2


def test_the_newest_is_judged_first_and_the_rest_expires(make_installation: MakeInstallation) -> None:
    """The provider answers the newest alone; whichever of the others is asked for takes all of their time."""
    installation = make_installation(assessments={"concurrency": 1})
    installation.provider.change(faults=[Fault("stall", contains="[0, 0, 100", seconds=600, count=None)])
    now = time.time_ns() // 1_000_000
    older, newest = tasks(4, "older", seconds=2.0), task("newest", bbox=[0, 0, 2000, 10], seconds=600.0)
    # In one transaction and one partition, so that one poll reads them all.
    sent = [older[2], older[0], newest, older[3], older[1]]
    installation.send(*sent, partition=0, timestamps_ms=[now - 2000, now - 4000, now, now - 1000, now - 3000])
    run = installation.drain()
    results = {each.task_id: each for each in installation.results()}
    assert len(results) == 5
    assert results.pop("newest").error is None
    assert [(each.error or {})["class"] for each in results.values()] == [EXPIRED] * 4
    report = installation.provider.report()
    assert report.requests <= 2, "one call at a time, and each of the others takes longer than all of them have"
    assert next(iter(report.asked)) in report.answered, "what was asked first is what was answered: the newest"
    (completed, expired) = (sum(getattr(day, name) for day in run.days.values()) for name in ("completed", "expired"))
    assert (completed, expired) == (1, 4)
    assert lag(installation) == 0


def test_what_was_put_aside_for_want_of_room_is_read_once_more_and_judged(
    make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 20
    installation = make_installation(assessments={"concurrency": 1, "held_tasks": 5})
    installation.provider.change(answer_seconds=0.5)
    began = time.time_ns() // 1_000_000 - 300_000
    installation.send(*tasks(count, seconds=600.0), timestamps_ms=[began + n for n in range(count)])
    again: list[ReceivedMessage] = []
    find = MessageLookup.find

    def finding(lookup: MessageLookup, wanted: Mapping[PartitionId, Collection[int]]) -> list[ReceivedMessage]:
        found = find(lookup, wanted)
        again.extend(found)
        return found

    monkeypatch.setattr(MessageLookup, "find", finding)

    def should_stop() -> None:
        """Let the provider be fast once everything was read, which takes it no longer than an answer now and then."""
        if run.figures()["messages"] == count:
            installation.provider.change(answer_seconds=0.0)

    with installation.open_drain(should_stop=should_stop) as run:
        run.run()
    assert len(again) >= 5
    results = installation.results()
    assert Counter(each.task_id for each in results) == Counter(f"task-{n}" for n in range(count))
    assert all(each.error is None for each in results)
    assert set(installation.provider.report().answered.values()) == {1}
    assert lag(installation) == 0


def test_what_was_judged_before_a_failure_is_told_by_the_next_run_and_not_asked_again(
    installation: Installation,
) -> None:
    sent = tasks(10)
    installation.send(*sent)
    # A transaction of offsets alone may come before anything is judged.
    away = failing(TransactionalProducer, "send", KafkaError("away"), lambda _, messages, *others: bool(messages))
    with away, pytest.raises(KafkaError):
        installation.drain()
    assert installation.results() == []
    noted = installation.rows(*(each.task_id for each in sent))
    assert noted
    asked = installation.provider.report().requests
    installation.drain()
    assert {each.task_id for each in installation.results()} == {each.task_id for each in sent}
    assert len(installation.results()) == 10
    assert installation.provider.report().requests - asked <= 10 - len(noted), "only what was in flight is asked again"
    assert lag(installation) == 0


def test_results_do_not_wait_for_a_slow_one_before_them_and_are_not_told_twice(installation: Installation) -> None:
    installation.provider.change(faults=[Fault("stall", contains="[0, 0, 1000", seconds=600, count=None)])
    installation.send(*tasks(20), partition=0)

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while len(installation.results()) < 19 and time.monotonic() < deadline:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with installation.open_drain(once=False, idle_seconds=120) as run, pytest.raises(KeyboardInterrupt):
        run.run()
    interrupting.join()
    assert {each.task_id for each in installation.results()} == {f"task-{n}" for n in range(1, 20)}
    installation.provider.change(faults=[])
    second = installation.drain()
    assert Counter(each.task_id for each in installation.results()) == Counter(f"task-{n}" for n in range(20))
    assert second.figures()["messages"] == 20, "read again, since one of them had not been done"
    (day,) = second.days.values()
    assert day.completed == 1
    assert max(installation.provider.report().answered.values()) == 1
    assert lag(installation) == 0


def test_a_provider_that_is_away_for_a_while_is_waited_for(make_installation: MakeInstallation) -> None:
    installation = make_installation(providers={"deadline_seconds": 1.0}, pipeline={"store_outage_seconds": 120})
    installation.provider.change(faults=[Fault("server_error", count=16)])
    installation.send(*tasks(10))
    installation.drain()
    assert len(installation.results()) == 10
    assert installation.letters() == []


def test_a_provider_that_stays_away_fails_the_run_and_nothing_is_acknowledged(
    make_installation: MakeInstallation,
) -> None:
    installation = make_installation(providers={"deadline_seconds": 0.1}, pipeline={"store_outage_seconds": 0.5})
    installation.provider.change(faults=[Fault("bad_gateway", count=None)])
    installation.send(*tasks(10))
    with pytest.raises(ProviderUnavailableError, match="it was waited for"):
        installation.drain()
    assert installation.results() == []
    assert installation.letters() == []
    installation.provider.change(faults=[])
    installation.drain()
    assert len(installation.results()) == 10


def test_a_state_of_keys_that_is_away_is_waited_for_as_a_provider_is(make_installation: MakeInstallation) -> None:
    installation = make_installation(pipeline={"store_outage_seconds": 0.5})
    installation.send(*tasks(10))
    with (
        failing(ChatModel, "ask", KeysError("Redis is away")),
        pytest.raises(ProviderUnavailableError, match="it was waited for"),
    ):
        installation.drain()
    assert installation.letters() == []
    assert lag(installation) >= 10


def test_where_no_key_may_be_used_for_the_model_the_run_fails_at_once(make_installation: MakeInstallation) -> None:
    installation = make_installation(pipeline={"store_outage_seconds": 3600})
    file = Path(installation.settings.providers.keys_file)
    file.write_text(file.read_text().replace('"name"', '"models": ["another"], "name"'))
    installation.send(*tasks(10))
    with pytest.raises(NoSuitableKeyError, match=r"no API key .* for the model judge: add one there"):
        installation.drain()
    assert installation.letters() == []
    assert lag(installation) >= 10


def test_a_replay_judges_what_was_not_and_answers_nobody(installation: Installation) -> None:
    installation.send(task("late", seconds=-1), *tasks(3))
    installation.drain()
    told = installation.results()
    today = datetime.now(UTC).date()
    run = installation.replay(ReplayRequest("replay", (today, today)))
    assert installation.results() == told
    (day,) = run.days.values()
    assert day.completed == 1
    assert installation.rows("late")["late"].state is AssessmentState.COMPLETED
    asked = installation.provider.report().requests
    assert not installation.replay(ReplayRequest("replay", (today, today))).days
    assert installation.provider.report().requests == asked


def test_results_are_sent_to_be_embedded_where_a_collection_is_named(make_installation: MakeInstallation) -> None:
    installation = make_installation(assessments={"collection": "risks", "image_collection": "moments"})
    installation.send(*tasks(2), task("plain", group_image_base64=None))
    installation.drain()
    names = TopicNames(installation.kafka.topic_prefix)
    texts = [json.loads(each.value()) for each in read(installation.kafka, names.requests(Modality.TEXT))]
    images = [json.loads(each.value()) for each in read(installation.kafka, names.requests(Modality.IMAGE))]
    results = {each.task_id: each for each in installation.results()}
    assert {each["task_id"] for each in texts} == {f"{name}/text" for name in results}
    assert {each["task_id"] for each in images} == {"task-0/image", "task-1/image"}
    for each in texts:
        result = results[each["metadata"]["task_id"]]
        assert each["collection"] == "risks"
        assert each["data"].startswith(result.summary)
        assert each["metadata"]["risk_level"] == result.risk_level
    assert {each["data"] for each in images} == {f"data:image/jpeg;base64,{PICTURE}"}


def test_what_does_not_fit_into_the_topic_of_requests_is_left_out_and_holds_up_nothing(
    make_installation: MakeInstallation, caplog: pytest.LogCaptureFixture
) -> None:
    installation = make_installation(assessments={"image_collection": "moments"})
    topic = TopicNames(installation.kafka.topic_prefix).requests(Modality.IMAGE)
    make_topic(installation.kafka, topic, max_message_bytes="10000")
    large = base64.b64encode(b"\xff\xd8\xff" + random.Random(1).randbytes(20_000)).decode()
    installation.send(*tasks(1), *tasks(1, "large", group_image_base64=large))
    installation.drain()
    assert len(installation.results()) == 2
    assert [json.loads(each.value())["task_id"] for each in read(installation.kafka, topic)] == ["task-0/image"]
    assert "large-0 is not made searchable: its request has" in caplog.text
    assert lag(installation) == 0


def test_offsets_of_a_topic_that_was_deleted_and_made_again_say_nothing_of_its_messages(
    installation: Installation,
) -> None:
    sent = tasks(20)
    installation.send(*sent[:3], partition=0)
    earlier = PartitionProgress(10)
    for offset in range(10, 30):
        earlier.read(offset)
    for offset in range(11, 30):
        earlier.finish(offset)
    group = consumer(installation.kafka)
    place = TopicPartition(installation.kafka.assessment_tasks_topic, 0, 10, metadata=earlier.metadata())
    group.commit(offsets=[place], asynchronous=False)
    group.close()
    with installation.open_drain() as run:
        installation.send(*sent[3:], partition=0)
        run.run()
    assert {each.task_id for each in installation.results()} == {each.task_id for each in sent}
