"""The machine's clocks that deadlines depend on."""

from __future__ import annotations

import sys
import time

import pytest

from imdsproxy.clock import SystemClock


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one monotonic clock")
def test_monotonic_clock_counts_hibernation() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= SystemClock().monotonic() <= time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.attack(11)
def test_monotonic_clock_never_goes_back() -> None:
    clock = SystemClock()
    moments = [clock.monotonic() for _ in range(1000)]
    assert moments == sorted(moments)
