"""An event loop in virtual time: waiting takes no time, so a test of 48 hours takes milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_BEGIN = 1_000.0
_WALL = 1_800_000_000.0


class _Selector(selectors.SelectSelector):
    """Instead of waiting, moves the time on to the next timer."""

    now = _BEGIN

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "nothing would ever happen again in this test"
            self.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


class VirtualClock:
    """The clock that goes with the loop; the wall clock can be made to jump."""

    def __init__(self) -> None:
        self.wall_offset = _WALL - _BEGIN

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self.monotonic() + self.wall_offset


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
