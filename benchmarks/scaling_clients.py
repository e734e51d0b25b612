"""What a client of IMDS does when it is refused, and what is told of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.scaling_node import Door
from imdsproxy.protocol.messages import Response

INSTANCE = "/metadata/instance?api-version=2021-02-01"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://{resource}.azure.net"
RESOURCES = ("vault", "storage", "database", "management", "servicebus")

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
    """Seconds after which calls were served: from the beginning, or, of polls, from the call."""
    restarts: int = 0


async def call(door: Door, target: str, tally: Tally) -> bool:
    """Ask as azure-identity does: try again up to five times, and then give up."""
    for attempt in range(len(_PAUSES) + 1):
        response = await door(target)
        if not told(response, tally):
            return True
        if attempt == len(_PAUSES) or response.status not in _RETRIED:
            break
        pauses = _PAUSES_AFTER_410 if response.status == 410 else _PAUSES
        await asyncio.sleep(response.seconds(b"retry-after") or pauses[attempt])
    return False


def told(response: Response, tally: Tally) -> bool:
    """Count what a client was told, if that is no document."""
    if response.status == 200:
        return False
    tally.errors[response.status] += 1
    return True


def token(resource: str = RESOURCES[0], identity: int | None = None) -> str:
    named = "" if identity is None else f"&client_id={identity}"
    return _TOKEN.format(resource=resource) + named
