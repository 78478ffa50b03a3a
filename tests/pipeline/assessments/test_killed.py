"""Runs that are killed lose nothing and answer nothing twice; `chaos` is the large version of it."""

from pathlib import Path

from tests.pipeline.assessments.chaos import kill_runs, tree_of
from tests.servers.provider import Fault, KeyLimits, serving_provider
from vectorize_pipelines.settings import KafkaSettings

DETECTIONS = 100
KILLS = 1
#: No limit by second: on a busy machine a call may arrive later than it begins, and so too near the next one.
KEYS = {f"key-{number}": KeyLimits(concurrency=16) for number in range(4)}


def test_killed_runs_lose_nothing_and_answer_nothing_twice(home: Path, kafka_settings: KafkaSettings) -> None:
    servers = kafka_settings.bootstrap_servers
    assert servers is not None
    faults = [Fault("rate_limited", count=None, every=31, seconds=0.05), Fault("refused", count=None, every=47)]
    with serving_provider(KEYS, answer_seconds=0.1, faults=faults) as provider:
        tree = tree_of(home, servers, provider, None, kafka_settings.topic_prefix, keys=KEYS)
        checks = kill_runs(tree, provider, DETECTIONS, KILLS, seed=0, seconds=1.0)
        assert provider.report().violations == 0
    assert all(check.is_right for check in checks), "\n" + "\n".join(map(str, checks))
