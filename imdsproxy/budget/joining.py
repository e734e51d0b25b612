"""Join the proxies that share the budgets in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from imdsproxy.budget import shared_record as records
from imdsproxy.clock import Clock
from imdsproxy.errors import BudgetFileError

assert sys.platform == "linux"  # noqa: S101  # as in `shared_file`

from imdsproxy.budget.shared import SharedBudget  # noqa: E402  # behind the line above
from imdsproxy.budget.shared_file import BudgetFile  # noqa: E402  # as well


def share(
    path: str, clock: Clock, window: float, sizes: Sequence[tuple[int, int | None]], leases: tuple[float, float]
) -> tuple[list[SharedBudget], Callable[[], None]]:
    """Join the budgets in a file; return them, and a function that closes them.

    Args:
        path: The file, which is created if it does not exist.
        clock: The machine's clock.
        window: The window of every budget, in seconds.
        sizes: The requests, and the most at once, of each budget.
        leases: The seconds for which a permit is lent, for ordinary and for slow requests.

    Raises:
        BudgetFileError: The file cannot be used.
    """
    if max(leases) > records.LONGEST_LEASE or window > records.LONGEST_LEASE:
        raise BudgetFileError(
            f"no request and no window may last longer than {records.LONGEST_LEASE:g} s where a budget is shared; "
            "lower IMDSPROXY_READ_TIMEOUT, IMDSPROXY_CONNECT_TIMEOUT or IMDSPROXY_BUDGET_WINDOW"
        )
    if max(requests for requests, _ in sizes) > records.MOST_PERMITS:
        raise BudgetFileError(f"a shared budget has at most {records.MOST_PERMITS} requests")
    file = BudgetFile(path, clock, caution=leases[0])
    try:
        budgets = [
            SharedBudget(file, section, clock, (requests, window), concurrent)
            for section, (requests, concurrent) in enumerate(sizes)
        ]
    except BudgetFileError:
        file.close()
        raise

    def close() -> None:
        for budget in budgets:
            budget.close()
        file.close()

    return budgets, close
