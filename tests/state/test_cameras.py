"""The table of cameras: the latest time at which each was heard of."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.cameras import Cameras

NOW = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=UTC)
BEFORE = NOW - timedelta(hours=1)


def test_the_latest_time_stands(settings: Settings) -> None:
    with closing(Cameras.open(settings)) as cameras:
        cameras.note({})
        cameras.note({"north": NOW, "south": BEFORE, "bell\x07\ud800": BEFORE})
        cameras.note({"north": BEFORE, "south": NOW})
        assert cameras.last_seen(NOW) == {"north": NOW, "south": NOW}
        assert len(cameras.last_seen(BEFORE)) == 3
        assert cameras.purge(NOW) == 1
        assert cameras.last_seen(BEFORE) == {"north": NOW, "south": NOW}
