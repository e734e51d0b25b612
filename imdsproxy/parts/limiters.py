"""The limiter of each class of the budget, with a budget of this process alone or of all that share a file."""

from __future__ import annotations

import sys
from collections.abc import Callable

from imdsproxy.budget.bucket import Budget
from imdsproxy.budget.limiter import LATEST_START, Limiter
from imdsproxy.clock import Clock
from imdsproxy.config import Config
from imdsproxy.errors import BudgetFileError, SettingsError
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.upstream.client import SLOW_READ_TIMEOUT

IDENTITY_CONCURRENT = 5
"""Identity requests that IMDS serves concurrently (Microsoft's IMDS page, 2025)."""


def make_limiters(config: Config, clock: Clock) -> tuple[dict[BudgetClass, Limiter], Callable[[], None]]:
    """Return the limiter of each class, and the function that releases the shared budget once no request waits."""
    window, max_wait = config.budget_window, config.max_wait
    sizes: list[tuple[int, int | None]] = [(config.budget_requests, None)]
    if config.identity_budget_requests is not None:
        sizes.append((config.identity_budget_requests, IDENTITY_CONCURRENT))
    path = config.budget_file
    if path is None:
        queues = [Limiter(Budget(requests, window, concurrent), clock, max_wait) for requests, concurrent in sizes]
        return dict(zip(BudgetClass, (queues[0], queues[-1]), strict=True)), lambda: None
    longest = config.connect_timeout + config.read_timeout
    slowest = config.connect_timeout + max(config.read_timeout, SLOW_READ_TIMEOUT)
    leases = (longest + LATEST_START, slowest + LATEST_START)
    if sys.platform == "linux":
        # Imported here, because only a shared budget needs it.
        from imdsproxy.budget.joining import share  # noqa: PLC0415

        try:
            budgets, close = share(path, clock, window, sizes, leases)
        except BudgetFileError as error:
            raise SettingsError(f"IMDSPROXY_BUDGET_FILE={path} cannot be used: {error}") from None
        queues = [Limiter(budget, clock, max_wait, leases) for budget in budgets]
        return dict(zip(BudgetClass, (queues[0], queues[-1]), strict=True)), close
    raise SettingsError("IMDSPROXY_BUDGET_FILE: a budget is shared on Linux only")
