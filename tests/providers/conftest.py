"""Fixtures of tests of keys: each state that processes may share."""

import pytest

from vectorize_pipelines.settings import Settings


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest) -> Settings:
    """The settings of an installation whose keys' use is kept in SQLite, or in a real Redis."""
    settings: Settings = request.getfixturevalue("settings" if request.param == "sqlite" else "redis_settings")
    return settings
