"""A client of IMDS with the retries of azure-identity, and the count of what the clients saw."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.scaling.node import Door
from imdsproxy.protocol.messages import Response

# azure-identity 1.27 for Python: five retries after these pauses, or after `Retry-After` where there is one.
_PAUSES = (0.0, 1.6, 3.2, 6.4, 12.8)
_PAUSES_AFTER_410 = (0.0, 5.0, 10.0, 20.0, 40.0)
_RETRIED = frozenset({404, 410, 429, *range(500, 600)})


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    began: float
    calls: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    served: list[float] = field(default_factory=list)
    """Seconds until each served call: from the start of the workload, or, of polls, from the call."""
    restarts: int = 0


async def call(door: Door, target: str, tally: Tally) -> bool:
    """Call as azure-identity does, with up to five retries, and return whether it was served."""
    for attempt in range(len(_PAUSES) + 1):
        response = await door(target)
        if not count_error(response, tally):
            return True
        if attempt == len(_PAUSES) or response.status not in _RETRIED:
            break
        pauses = _PAUSES_AFTER_410 if response.status == 410 else _PAUSES
        await asyncio.sleep(response.seconds(b"retry-after") or pauses[attempt])
    return False


def count_error(response: Response, tally: Tally) -> bool:
    """Count a response whose status is not 200, and return whether it was one."""
    if response.status == 200:
        return False
    tally.errors[response.status] += 1
    return True
