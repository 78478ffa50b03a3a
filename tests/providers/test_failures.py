"""What a provider says when it fails, understood: pauses in every spelling, and whose fault it is."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.providers.failures import retry_after_seconds

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"x-ratelimit-reset-requests": "1m30.5s", "x-ratelimit-remaining-requests": "0"}, 90.5),
        ({"x-ratelimit-reset-tokens": "6ms"}, 0.006),
        ({"x-ratelimit-reset-requests": "1h", "x-ratelimit-remaining-requests": "5"}, None),
        (
            {
                "x-ratelimit-reset-requests": "1h",
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-tokens": "2s",
                "x-ratelimit-remaining-tokens": "0",
            },
            2,
        ),
        ({"ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-reset": f"{NOW.timestamp() + 4:.0f}", "date": format_datetime(NOW, usegmt=True)}, 4),
        ({"x-ratelimit-reset": f"{(NOW.timestamp() + 4) * 1000:.0f}", "date": format_datetime(NOW, usegmt=True)}, 4),
        ({"x-ratelimit-reset-requests": "1s of rest"}, None),
    ],
)
def test_pauses(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == (None if seconds is None else pytest.approx(seconds))


@given(st.integers(0, 3600), st.integers(-3600, 3600))
def test_a_time_of_day_counts_by_the_providers_clock(seconds: int, skew: int) -> None:
    now = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=skew)
    headers = {
        "date": format_datetime(now, usegmt=True),
        "retry-after": format_datetime(now + timedelta(seconds=seconds), usegmt=True),
    }
    assert retry_after_seconds(headers) == pytest.approx(seconds)


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset", "date"]), st.text()))
def test_whatever_headers_say_is_a_pause_or_nothing(headers: dict[str, str]) -> None:
    seconds = retry_after_seconds(headers)
    assert seconds is None or seconds >= 0
