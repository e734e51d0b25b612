"""Proxies that share a budget, as far as its tests need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imdsproxy.budget.bucket import Permit
from imdsproxy.budget.joining import share
from imdsproxy.budget.shared import SharedBudget
from imdsproxy.errors import BudgetFileError
from imdsproxy.testing.clock import FakeClock

LEASES = (17.0, 137.0)


class Sharer:
    """A proxy that shares a file. Several in one process act as several processes, except for the presence lock."""

    def __init__(self, path: Path, clock: FakeClock, requests: int = 5, window: float = 1.0) -> None:
        self.clock = clock
        budgets, self.close = share(str(path), clock, window, [(requests, None)], LEASES)
        self.budget: SharedBudget = budgets[0]

    def take(self) -> Permit | float:
        return self.budget.reserve(self.clock.monotonic(), LEASES[0], background=False)

    def took(self) -> Permit:
        """Take a permit, after the head start of other processes if there is one."""
        permit = self.take()
        if not isinstance(permit, Permit) and permit < 0.021:
            self.clock.advance(permit + 1e-6)
            permit = self.take()
        assert isinstance(permit, Permit), permit
        return permit

    def available(self) -> int:
        return self.budget.available(self.clock.monotonic())

    def release(self, permit: Permit) -> None:
        self.budget.release(permit, self.clock.monotonic())


Join = Callable[..., Sharer]
Said = Callable[[], list[str]]


def refusal(path: Path, clock: FakeClock, **more: object) -> str:
    """Return why a proxy cannot share the file."""
    with pytest.raises(BudgetFileError) as caught:
        Sharer(path, clock, **more)  # type: ignore[arg-type]
    return str(caught.value)
