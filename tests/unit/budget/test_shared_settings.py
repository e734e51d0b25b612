"""Proxies with different settings share one budget: the strictest applies while its proxy runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from imdsproxy.budget import shared_record as records
from imdsproxy.testing.clock import FakeClock
from tests.unit.budget.sharing import Join, Said, Sharer, refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")


def test_strictest_setting_counts_while_its_proxy_runs(join: Join, clock: FakeClock, said: Said) -> None:
    first = join(requests=5)
    strict = join(requests=3, window=2.0)
    loose = join(requests=100)
    told = "the shared budget is 3 requests in 2 s now, the setting of the strictest proxy"
    assert said() == [told], "the loose one's; the strict one is told nothing new"
    clock.advance(1)
    for _ in range(3):
        first.took()
    assert [sharer.available() for sharer in (first, strict, loose)] == [0, 0, 0]
    assert first.budget.requests == 3
    assert said() == [told] * 2


def test_single_proxy_uses_its_own_setting(path: Path, clock: FakeClock) -> None:
    Sharer(path, clock, requests=3).close()
    clock.advance(5)
    alone = Sharer(path, clock, requests=5)
    assert alone.available() == 3, "the new ones rest first"
    clock.advance(1)
    assert alone.available() == 5
    alone.close()


@pytest.mark.attack(20)
def test_strictest_setting_ends_with_its_proxy(join: Join, clock: FakeClock, said: Said) -> None:
    loose = join()
    strict = join(requests=1, window=3_600.0)
    loose.take()
    assert loose.budget.requests == 1
    strict.close()
    strict.close = lambda: None
    loose.take()
    assert loose.budget.requests == 5
    clock.advance(1.0)
    assert loose.available() == 4, "the permits that were added rest for a window"
    assert said()[-1] == "the shared budget is 5 requests in 1 s now, the setting of the strictest proxy"


@pytest.mark.parametrize("look", ["available", "expected_wait"])
def test_end_of_the_strictest_proxy_is_noticed_though_nothing_is_taken(join: Join, clock: FakeClock, look: str) -> None:
    """A request with a long expected wait is refused before it takes a permit."""
    loose = join()
    strict = join(requests=1, window=3_600.0)
    assert loose.budget.expected_wait(0, clock.monotonic()) > 3_000
    strict.close()
    strict.close = lambda: None
    for _ in range(2):
        clock.advance(1.0)
        loose.available() if look == "available" else loose.budget.expected_wait(0, clock.monotonic())
    assert loose.budget.requests == 5
    assert loose.budget.expected_wait(0, clock.monotonic()) == 0


def test_second_strictest_setting_counts_after_the_strictest_ended(join: Join, clock: FakeClock) -> None:
    loose, strict, stricter = join(), join(requests=3), join(requests=2)
    same = join(requests=2)
    stricter.close()
    stricter.close = lambda: None
    loose.take()
    assert loose.budget.requests == 2, "another was told the same"
    same.close()
    same.close = lambda: None
    loose.take()
    assert loose.budget.requests == 3
    strict.take()
    assert strict.budget.requests == 3


@pytest.mark.attack(20)
def test_seventeenth_different_setting_is_refused(join: Join, clock: FakeClock, path: Path) -> None:
    sharers = [join(requests=1 + number) for number in range(records.MOST_SETTINGS)]
    assert "give all of them the same" in refusal(path, clock, requests=99)
    sharers[0].close()
    sharers[0].close = lambda: None
    late = join(requests=99)
    late.take()
    assert late.budget.requests == 2
