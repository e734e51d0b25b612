"""A proxy keeps its own budget, whatever another process writes into the shared file."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import Permit
from imdsproxy.budget.bucket_state import State
from imdsproxy.testing.clock import FakeClock
from tests.unit.budget.sharing import Join

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")


FORGED = itertools.count(2**40, 2**20)


def forge(path: Path, state: State) -> None:
    """Put a record into the file as if a proxy had written it."""
    with path.open("r+b") as file:
        offset, piece = records.write(state, 0, next(FORGED))
        file.seek(offset)
        file.write(piece)


@pytest.mark.attack(20)
def test_proxy_keeps_its_own_budget_for_any_file_content(join: Join, clock: FakeClock, path: Path) -> None:
    one = join()
    sent: list[float] = []
    for _ in range(400):
        forge(path, State(128, 0.001))
        permit = one.take()
        if isinstance(permit, Permit):
            sent.append(clock.monotonic())
            one.release(permit)
        clock.advance(0.01)
    assert len(sent) >= 15
    assert all(later - earlier >= 1.0 for earlier, later in zip(sent, sent[5:], strict=False))


def test_proxy_keeps_its_own_429_for_any_file_content(join: Join, clock: FakeClock, path: Path) -> None:
    one = join()
    permit = one.took()
    one.budget.throttled(permit.taken_at, clock.monotonic(), 7)
    one.release(permit)
    forge(path, State(5, 1.0))
    clock.advance(6.9)
    assert isinstance(one.take(), float)
    assert one.available() == 0
    assert one.budget.expected_wait(0, clock.monotonic()) == pytest.approx(0.1)
    clock.advance(0.1)
    one.took()


@pytest.mark.attack(20)
def test_forged_setting_is_ignored(join: Join, clock: FakeClock, path: Path) -> None:
    one = join()
    with path.open("r+b") as file:
        offset, piece = records.write(State(1, 3600.0), 0, 2**40, ((1, 3600.0), (5, 1.0), *records.NO_SETTINGS[2:]))
        file.seek(offset)
        file.write(piece)
    one.take()
    assert one.budget.requests == 5
