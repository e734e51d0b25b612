"""The speed of the load, so that a run leaves the machine to others."""

from __future__ import annotations

import asyncio

MOST = 0.2
"""The share of one core that all processes of a run may use together; a quarter with what the control adds."""
_LOWEST = 0.05
_STEP_UP = 1.25


def adjusted(pace: float, used: float, most: float = MOST) -> float:
    """Return the next pace, where 1 is full speed.

    Args:
        pace: The pace until now.
        used: The share of one core that was used at that pace.
        most: The share that may be used.
    """
    factor = min(_STEP_UP, most / used) if used > 0 else _STEP_UP
    return max(_LOWEST, min(1.0, pace * factor))


class Pace:
    """The pace in force, and waiting by it."""

    def __init__(self) -> None:
        self.now = 1.0

    async def wait(self, seconds: float) -> None:
        """Wait so many seconds, or more if the pace is below 1."""
        await asyncio.sleep(seconds / self.now)
