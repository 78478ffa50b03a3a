"""Processes that share keys and are killed: no window is exceeded, nobody starves. The large version: `key_chaos`."""

from pathlib import Path

import pytest

from tests.providers.key_chaos import TOKENS, Plan, run
from vectorize_pipelines.providers.key_pool import Windows
from vectorize_pipelines.settings import Settings

pytestmark = pytest.mark.slow

#: The margins are half of the window, so that requests that a busy machine keeps waiting on their way exceed none.
PLAN = Plan(
    keys=6,
    processes=3,
    seconds=5.0,
    kills=1,
    windows=Windows(second=1.0, minute=3.0, second_margin=0.5, minute_margin=0.5, second_margin_most=0.5),
    rpm=10,
    tpm=10 * TOKENS,
    calls=6,
    lease_seconds=2.0,
    skew=5.0,
)


def test_no_window_is_exceeded_and_no_process_starves(shared: Settings, tmp_path: Path) -> None:
    url = None if shared.redis.url is None else shared.redis.url.get_secret_value()
    result = run(PLAN, tmp_path / "chaos", url)
    assert result.refused == {}
    assert result.violations == []
    assert result.left == 0
    assert min(result.calls.values()) > 0
    assert result.used > 0.25
