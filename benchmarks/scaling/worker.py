"""What a process of the simulation runs.

A module of its own: a spawned process does not import the `__main__` of a package.
"""

from __future__ import annotations

import gc
import logging

from benchmarks.scaling.cases import Case, Result
from benchmarks.scaling.simulation import simulate


def prepare() -> None:
    """Prepare a process before its first case."""
    # The proxies' log lines about so many 429s are not wanted, and one collection after each case is faster.
    logging.getLogger("imdsproxy").addHandler(logging.NullHandler())
    gc.disable()


def simulate_one(case: Case) -> Result:
    """Simulate a case, and collect what it leaves."""
    result = simulate(case)
    gc.collect()
    return result
