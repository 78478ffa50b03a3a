"""Which errors of a step Dagster tries again."""

import dagster as dg
import pytest

from vectorize_pipelines.errors import SettingsError, StoreUnavailableError, VectorizeError
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.state.leases import LeaseLostError, RunLeaseLostError


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (StoreUnavailableError("the store is away"), True),
        (LeaseLostError("the lock of the table texts was lost"), True),
        (RunLeaseLostError("the lock of run 1 was lost"), False),
        (SettingsError("there is no such setting"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, VectorizeError) else "",
)
def test_only_what_may_pass_is_tried_again(error: VectorizeError, is_tried_again: bool) -> None:
    with pytest.raises(dg.Failure) as failure, translate_errors():
        raise error
    assert failure.value.allow_retries is is_tried_again
    assert failure.value.description == str(error)
