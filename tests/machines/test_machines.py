"""What machines do that fail while they embed messages and files: nothing is lost, nothing is there twice."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.components import need
from tests.machines.chaos import disturb
from tests.machines.faults import KINDS, Timing
from tests.machines.network import check_available
from tests.machines.site import Sizes, running_site

#: So that a lost run is missed soon: a machine is away for longer than its leases last.
SIZES = Sizes(machines=2, lag_per_run=1_000, batch_messages=20, batch_items=20, idle_seconds=3, lease_seconds=5)
TIMING = Timing(every=9, killed=2, stalled=8, cut_off=8)
MESSAGES = 400
FILES = 100


@pytest.fixture
def machines_to_have(
    kafka_program: None, postgresql_program: None, redis_program: None, weaviate_program: None
) -> None:
    """What it takes to run several machines on this one."""
    need(check_available)


@pytest.mark.timeout(900)
def test_machines_that_fail_lose_and_double_nothing(machines_to_have: None) -> None:
    with TemporaryDirectory(prefix="vectorize-machines-") as place, running_site(Path(place) / "site", SIZES) as site:
        faults, checks = disturb(site, MESSAGES, FILES, len(KINDS), seed=0, timing=TIMING)
    assert {each.kind for each in faults} == set(KINDS)
    assert all(check.is_right for check in checks), "\n".join(map(str, checks))
