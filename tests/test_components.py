"""The markers that tests get: here, of the tests of this file itself."""

import pytest

from tests.components import USUAL_SECONDS


@pytest.mark.timeout(USUAL_SECONDS + 1)
def test_one_with_a_long_limit_is_slow(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("slow")


@pytest.mark.timeout(timeout=USUAL_SECONDS + 1)
def test_one_with_a_long_limit_by_keyword_is_slow(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("slow")


@pytest.mark.timeout(timeout=USUAL_SECONDS)
def test_one_with_the_usual_limit_is_not(request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("slow")
