"""A provider that is away is tried by one call at a time, with pauses that grow, and not for ever."""

from vectorize_pipelines.errors import ProviderUnavailableError
from vectorize_pipelines.pipeline.assessments.provider_outage import FIRST_PAUSE_SECONDS, ProviderOutage

AWAY = ProviderUnavailableError("away")


def test_calls_are_made_one_at_a_time_until_one_is_answered() -> None:
    now = 100.0
    outage = ProviderOutage(60.0, lambda: now)
    assert outage.may_call(running=250)
    assert all(outage.failed(AWAY) is None for _ in range(250)), "calls side by side fail together"
    assert not outage.may_call(running=0)
    now += FIRST_PAUSE_SECONDS
    assert outage.may_call(running=0)
    assert not outage.may_call(running=1)
    outage.failed(AWAY)
    now += FIRST_PAUSE_SECONDS
    assert not outage.may_call(running=0), "the second pause is longer"
    now += FIRST_PAUSE_SECONDS
    assert outage.may_call(running=0)
    outage.answered()
    assert outage.may_call(running=250)


def test_an_outage_that_lasts_ends_the_run_and_another_one_is_counted_anew() -> None:
    now = 0.0
    outage = ProviderOutage(60.0, lambda: now)
    assert outage.failed(AWAY) is None
    now = 59.0
    assert outage.failed(AWAY) is None
    now = 60.0
    given_up = outage.failed(AWAY)
    assert given_up is not None
    assert "it was waited for 60 s" in str(given_up)
    outage.answered()
    assert outage.failed(AWAY) is None
