"""An installation with a broker and a provider, for tests of runs over assessment tasks."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.messaging.brokers import read, send
from tests.servers.provider import KeyLimits, ProviderServer
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.runs import ReplayRequest, open_drain, open_replay
from vectorize_pipelines.pipeline.assessments.stream import AssessmentRun
from vectorize_pipelines.providers.configured import configured_chat_model
from vectorize_pipelines.settings import KafkaSettings, Settings, load_settings
from vectorize_pipelines.state.assessments import AssessmentRow, Assessments

#: A key that allows everything that a test asks.
KEY = "key-for-tests"
UNLIMITED = KeyLimits()


@dataclass
class Installation:
    """`runs`: how many there were."""

    settings: Settings
    provider: ProviderServer
    runs: int = field(default=0)

    @property
    def kafka(self) -> KafkaSettings:
        return self.settings.kafka

    def send(
        self,
        *tasks: AssessmentTaskMessage | bytes,
        partition: int | None = None,
        timestamps_ms: Sequence[int] = (),
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Send tasks, or what is none, in one transaction."""
        create_topics(self.kafka, (Family.ASSESSMENTS,))
        messages: list[dict[str, Any]] = []
        for number, task in enumerate(tasks):
            value = task if isinstance(task, bytes) else task.to_json()
            message: dict[str, Any] = {"value": value, "key": b"camera"}
            if partition is not None:
                message["partition"] = partition
            if timestamps_ms:
                message["timestamp"] = timestamps_ms[number]
            if headers:
                message["headers"] = list(headers)
            messages.append(message)
        send(self.kafka, self.kafka.assessment_tasks_topic, *messages)

    def open_drain(self, *, should_stop: Callable[[], str | None] = lambda: None, **options: Any) -> AssessmentRun:
        """Open a run that ends at the end of the topic, unless `options` say otherwise."""
        self.runs += 1
        request = DrainRequest(f"run-{self.runs}", should_stop=should_stop, **{"once": True, **options})
        return open_drain(self.settings, request, partial(configured_chat_model, self.settings))

    def drain(self, **options: Any) -> AssessmentRun:
        """Drain the topic; return the run, for its figures."""
        with self.open_drain(**options) as run:
            run.run()
        return run

    def replay(self, request: ReplayRequest) -> AssessmentRun:
        """Replay some days; return the run."""
        with open_replay(self.settings, request, partial(configured_chat_model, self.settings)) as run:
            run.run()
        return run

    def results(self) -> list[RiskAssessmentResultMessage]:
        """All results that are committed."""
        found = read(self.kafka, self.kafka.risk_results_topic)
        return [RiskAssessmentResultMessage.from_json(message.value()) for message in found]

    def letters(self) -> list[Any]:
        """All dead letters, as messages."""
        return list(read(self.kafka, self.kafka.assessment_dead_letter_topic))

    def rows(self, *task_ids: str) -> dict[str, AssessmentRow]:
        """What the table has of these tasks."""
        with closing(Assessments.open(self.settings)) as assessments:
            return assessments.known(task_ids)


def install(
    home: Path, kafka: KafkaSettings, provider: ProviderServer, keys: Sequence[str] = (KEY,), **overrides: Any
) -> Installation:
    """Make an installation, or open it again; `overrides` is a tree of settings."""
    home.mkdir(exist_ok=True)
    keys_file = home / "api_keys.yaml"
    if not keys_file.exists():
        keys_file.write_text(json.dumps({"keys": [{"api_key": key, "name": f"name of {key}"} for key in keys]}))
    tree: dict[str, Any] = {
        "home": str(home),
        "kafka": kafka.model_dump(exclude_unset=True),
        "providers": {"base_url": provider.url, "model": "judge", "keys_file": str(keys_file)},
    }
    return Installation(load_settings(**_laid_over(tree, overrides)), provider)


def letter_headers(message: Any) -> dict[str, str]:
    """The headers of a dead letter."""
    return {name: (content or b"").decode() for name, content in message.headers()}


@contextmanager
def failing(
    owner: Any, method: str, error: Exception, when: Callable[..., bool] = lambda *arguments, **options: True
) -> Iterator[None]:
    """Have every call of a method with such arguments fail before it does anything."""
    original = getattr(owner, method)

    def fail(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            raise error
        return original(*arguments, **options)

    setattr(owner, method, fail)
    try:
        yield
    finally:
        setattr(owner, method, original)


def _laid_over(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for name, value in overrides.items():
        below = merged.get(name)
        merged[name] = _laid_over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
