"""Shards own disjoint parts, which together are everything, and the same for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.core.shards import WHOLE, Shard, slot
from vectorize_pipelines.errors import SettingsError


@given(names=st.lists(st.text(), max_size=50), count=st.integers(1, 300))
def test_every_source_has_one_owner_whatever_its_name(names: list[str], count: int) -> None:
    layout = Shard.layout(count)
    for name in names:
        assert sum(shard.owns_source(name) for shard in layout) == 1
        assert WHOLE.owns_source(name)


def test_the_owner_of_a_source_is_the_same_in_every_version() -> None:
    assert slot("/docs/a.md") == 11_933_877_508_156_385_681
    assert slot("s3://bucket/中文/\udcff.md") == 18_128_405_657_948_498_698


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "0/0", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="0/4"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse(str(Shard(3, 8))) == Shard(3, 8)
