"""A shared budget: how the proxies that share it divide the permits."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import sys
from pathlib import Path

import pytest

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import Permit
from imdsproxy.budget.joining import share
from imdsproxy.testing.clock import FakeClock
from tests.unit.budget.sharing import LEASES, Join, Sharer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")


def test_two_proxies_keep_one_budget(join: Join, clock: FakeClock) -> None:
    one, other = join(), join()
    held = [one.took() for _ in range(3)]
    other.took()
    other.took()
    assert (one.available(), other.available()) == (0, 0)
    assert one.take() == 0.25, "others give theirs back unseen, so it looks again soon"
    for permit in held:
        one.release(permit)
    assert other.take() == 0.25
    clock.advance(0.9)
    assert other.take() == pytest.approx(0.12, abs=0.01)
    clock.advance(0.1)
    assert other.available() == 3
    for _ in range(3):
        other.took()
    assert isinstance(one.take(), float)


def test_429_of_one_proxy_throttles_all(join: Join, clock: FakeClock) -> None:
    one, other = join(), join()
    permit = one.took()
    one.budget.throttled(permit.taken_at, clock.monotonic(), 7)
    one.release(permit)
    assert other.available() == 0
    assert other.budget.expected_wait(0, clock.monotonic()) == pytest.approx(7)
    clock.advance(7)
    other.took()


def test_clients_of_one_proxy_come_before_background_refreshes_of_another(join: Join, clock: FakeClock) -> None:
    one, other = join(requests=1), join(requests=1)
    one.release(one.took())
    clock.advance(1.0)
    assert isinstance(other.budget.reserve(clock.monotonic(), 17, background=True), float)
    one.release(one.took())
    clock.advance(1.06)
    assert isinstance(other.budget.reserve(clock.monotonic(), 17, background=True), Permit)


def test_permit_of_a_killed_proxy_returns_when_its_lease_ends(join: Join, clock: FakeClock) -> None:
    killed, living = join(requests=1), join(requests=1)
    killed.took()
    clock.advance(17.9)
    assert isinstance(living.take(), float)
    clock.advance(0.1)
    living.took()


def test_late_release_of_a_stopped_proxy_frees_no_permit_of_another(join: Join, clock: FakeClock) -> None:
    stopped, living = join(requests=1), join(requests=1)
    late = stopped.took()
    clock.advance(18)
    living.took()
    stopped.release(late)
    clock.advance(2)
    assert isinstance(living.take(), float)


def test_restart_keeps_the_state(join: Join, clock: FakeClock) -> None:
    before = join()
    for _ in range(5):
        before.took()
    before.close()
    before.close = lambda: None
    assert join().available() == 0


def test_new_file_is_for_owner_and_group_and_its_permits_rest_one_window(path: Path, clock: FakeClock) -> None:
    before = os.umask(0o077)
    try:
        sharer = Sharer(path, clock)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_size == records.SIZE
    assert sharer.take() == 0.25
    clock.advance(1.0)
    sharer.took()
    assert list(path.parent.iterdir()) == [path]
    sharer.close()


def test_identity_budget_has_its_own_section(path: Path, clock: FakeClock) -> None:
    (general, identity), close = share(str(path), clock, 1.0, [(5, None), (20, 5)], LEASES)
    clock.advance(1.0)
    now = clock.monotonic()
    assert (general.available(now), identity.available(now)) == (5, 5)
    taken = [identity.reserve(now + 0.03 * number, 17.0, background=False) for number in range(6)]
    assert [isinstance(permit, Permit) for permit in taken] == [True] * 5 + [False]
    assert general.available(now) == 5
    close()


def test_running_proxy_is_seen_by_others_and_not_by_itself(path: Path, clock: FakeClock) -> None:
    # Two open files in one process are as two processes.
    first = Sharer(path, clock, requests=3)
    Sharer(path, clock, requests=3).close()
    third = Sharer(path, clock, requests=5)
    third.take()
    assert third.budget.requests == 3, "the first is still there"
    first.close()
    third.close()
    alone = Sharer(path, clock, requests=5)
    alone.take()
    assert alone.budget.requests == 5
    alone.close()


def test_closed_budget_does_nothing(path: Path, clock: FakeClock) -> None:
    async def scenario() -> None:
        sharer = Sharer(path, clock)
        clock.advance(1.0)
        permit = sharer.took()
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            sharer.release(permit)
            sharer.close()
            assert isinstance(sharer.take(), float)
            await asyncio.sleep(0.02)

    asyncio.run(scenario())
