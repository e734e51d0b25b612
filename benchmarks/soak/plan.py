"""What happens when: the phases of a run, each with a fault of IMDS and a flood. They follow from the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Fault = Mapping[str, object]
"""A fault as the emulator's `POST /-/faults` takes it, without its duration."""

FAULTS: Mapping[str, Sequence[Fault]] = {
    "410": [{"path": "/metadata", "status": 410}],
    "429": [{"path": "/metadata", "status": 429, "share": 0.5}],
    "429 with Retry-After": [{"path": "/metadata", "status": 429, "retry_after": "2", "share": 0.5}],
    "500": [{"path": "/metadata", "status": 500, "share": 0.4}],
    "503": [{"path": "/metadata", "status": 503}],
    "hangs": [
        {"path": "/metadata/instance", "hang": True, "share": 0.3},
        {"path": "/metadata/identity", "hang": True, "share": 0.3},
    ],
    "resets": [{"path": "/metadata", "reset": True, "share": 0.5}],
    "cut and unreadable answers": [
        {"path": "/metadata", "truncate": True, "share": 0.2},
        {"path": "/metadata", "garbage": True, "share": 0.2},
    ],
    "latency": [{"path": "/metadata", "latency": 0.8}],
    "latency of scheduled events": [{"path": "/metadata/scheduledevents", "latency": 6.0}],
}
"""The faults by name; each lasts for one phase."""

FLOODS = (
    "pipelining",
    "slow heads",
    "vanishing clients",
    "half-closed connections",
    "distinct keys",
    "distinct tokens",
    "forged ids",
    "refused requests",
    "unread answers",
    "idle connections",
)
"""The names of the floods; `floods.FLOODS` has the functions."""

LONGEST_PHASE = 15.0
"""Seconds of one phase, if the run is long enough."""
_PHASES_IN_ROUND = 10


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run.

    Attributes:
        seconds: Its length.
        fault: The name of the fault of IMDS, or None.
        flood: The name of the flood, or None.
        rest: Whether memory, descriptors and threads are compared with those of other rests. There is no flood then.
    """

    seconds: float
    fault: str | None = None
    flood: str | None = None
    rest: bool = False


def phases(seed: int, seconds: float) -> Iterator[Phase]:
    """Yield phases without end, for a run of so many seconds.

    Ten phases are a round: three times a calm phase, a fault, and the time after the fault, each with a flood. A rest
    ends the round, so that what is measured in one rest can be compared with what is measured in another. A fault or a
    flood occurs again only after all others have occurred.
    """
    chance = random.Random(seed)  # repeatable on purpose
    length = min(LONGEST_PHASE, seconds / _PHASES_IN_ROUND)
    faults, floods = _in_turn(chance, list(FAULTS)), _in_turn(chance, list(FLOODS))
    while True:
        for _ in range(_PHASES_IN_ROUND // 3):
            yield Phase(length, flood=next(floods))
            yield Phase(length, fault=next(faults), flood=next(floods))
            yield Phase(length, flood=next(floods))
        yield Phase(length, rest=True)


def _in_turn(chance: random.Random, names: Sequence[str]) -> Iterator[str]:
    while True:
        yield from chance.sample(names, len(names))
