"""What stores that are servers share: keys that would cross a network in the open, and what is tried again."""

import logging

import pytest
from pydantic import SecretStr

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.servers import check_version, pauses, retry, revealed, server_address


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://db.example:8080", True), ("https://db.example", False), ("http://localhost:8080", False)],
)
def test_a_key_that_goes_over_http_to_another_machine_is_warned_of(
    url: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert revealed(SecretStr("the secret"), server_address(url, "a server", "http://host")) == "the secret"
    assert ("unencrypted" in caplog.text) == warned
    assert "the secret" not in caplog.text


@pytest.mark.parametrize(
    ("version", "enough"), [("1.18.9", False), ("1.19.0", True), ("1.20.1-dev", True), ("2.0", True)]
)
def test_a_server_that_is_too_old_is_refused(version: str, enough: bool) -> None:
    if enough:
        check_version("Store", "http://host", version, (1, 19))
    else:
        with pytest.raises(StoreError, match=r"http://host is Store 1\.18\.9; 1\.19 or later"):
            check_version("Store", "http://host", version, (1, 19))


class _Failing:
    """Fails so often, and then gives how often it was called."""

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            raise ConnectionError(f"call {self.calls}")
        return self.calls


def test_whoever_waits_for_a_server_is_told(caplog: pytest.LogCaptureFixture) -> None:
    retry(_Failing(2), pauses(3, 1e-4), lambda error: True)
    assert [record.getMessage() for record in caplog.records] == [
        "the vector store is away or overloaded; trying again in 0.0001 s",
        "the vector store is away or overloaded; trying again in 0.0002 s",
    ]


def test_a_call_is_tried_again_as_often_as_there_are_pauses() -> None:
    waits = pauses(3, 1e-4)
    assert retry(_Failing(3), waits, lambda error: True) == 4
    with pytest.raises(ConnectionError, match="call 4"):
        retry(_Failing(4), waits, lambda error: True)


def test_what_cannot_pass_is_raised_at_once() -> None:
    failing = _Failing(1)
    with pytest.raises(ConnectionError):
        retry(failing, pauses(3, 1e-4), lambda error: False)
    assert failing.calls == 1


def test_pauses_double_up_to_half_a_minute() -> None:
    assert pauses(8, 0.5) == [0.5, 1, 2, 4, 8, 16, 30, 30]
