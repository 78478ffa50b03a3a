"""Servers and programs that tests need and a machine may lack.

A fixture for each looks for it, such as `kafka_program`; the markers of a test follow from its fixtures (`MARKERS`).
"""

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from tests.paths import CHECKOUT
from tests.servers.packages import UnavailableError

#: A fixture that gives tests a server, or takes long -> the marker that these tests get.
MARKERS = {
    "kafka_program": "kafka",
    "kafka_server": "kafka",
    "postgresql_program": "postgresql",
    "postgresql": "postgresql",
    "redis_program": "redis",
    "weaviate_program": "weaviate",
    "helm_program": "kubernetes",
    "kubernetes_cluster": "kubernetes",
    "weaviate": "weaviate",
    "browser_program": "browser",
    "vectorize": "slow",
    "strace": "slow",
}
#: Most of what lies in them starts processes, or makes models ready.
SLOW_FOLDERS = ("tests/attacks", "tests/encoders/engines")
#: A test with a longer limit of time than this is slow too.
USUAL_SECONDS = 300


def missing(reason: str) -> NoReturn:
    """Leave the test out, because this machine lacks something; fail it where CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need(look: Callable[[], object]) -> None:
    """Leave the test out where `look` raises `UnavailableError`; fail it where CI=true."""
    try:
        look()
    except UnavailableError as error:
        missing(str(error))


def mark(items: list[pytest.Item]) -> None:
    """Put on each test the markers of its fixtures, used directly or not, and `slow` on those that may take long."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])
        if _limit(item) > USUAL_SECONDS or any(item.path.is_relative_to(CHECKOUT / folder) for folder in SLOW_FOLDERS):
            item.add_marker("slow")


def _limit(item: pytest.Item) -> float:
    """The seconds of its marker `timeout`, however they are given; 0 without one."""
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return 0.0
    return float(marker.args[0] if marker.args else marker.kwargs.get("timeout") or 0.0)
