"""What is known of the clock of the state, from answers that took this long or that long."""

from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.providers.state_clock import StateClock

DELAYS = st.floats(0, 1)
ANSWERS = st.lists(st.tuples(st.floats(0, 100), DELAYS, DELAYS), min_size=1, max_size=20)
#: Of times as large as those of a server, in seconds.
ROUNDING = 1e-5


def observe(clock: StateClock, offset: float, answers: list[tuple[float, float, float]], start: float = 0.0) -> float:
    """Ask again and again (pause, way there, way back); return when the last answer was heard."""
    heard = start
    for pause, there, back in answers:
        asked = heard + pause
        heard = asked + there + back
        clock.observe(asked, asked + there + offset, heard)
    return heard


@given(st.floats(-2e9, 2e9), ANSWERS)
def test_the_true_time_lies_between_the_bounds(offset: float, answers: list[tuple[float, float, float]]) -> None:
    clock = StateClock()
    heard = observe(clock, offset, answers)
    earliest, latest = clock.here(heard + 5 + offset)
    assert earliest - ROUNDING <= heard + 5 <= latest + ROUNDING
    assert latest - earliest <= min(there + back for _, there, back in answers[-1:]) + ROUNDING


@given(st.floats(-1000, 1000), st.floats(-1000, 1000), ANSWERS, ANSWERS)
def test_a_clock_that_was_set_is_found_out(
    before: float, after: float, first: list[tuple[float, float, float]], second: list[tuple[float, float, float]]
) -> None:
    clock = StateClock()
    heard = observe(clock, before, first)
    heard = observe(clock, after, [*second, (0.0, 0.0, 0.0)], heard)
    earliest, latest = clock.here(heard + after)
    assert earliest - ROUNDING <= heard <= latest + ROUNDING
