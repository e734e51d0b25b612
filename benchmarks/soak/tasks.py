"""Tasks that end with a block, and their errors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from benchmarks.soak.state import Work


class Tasks:
    """Tasks that are cancelled at the end of the block; the first error of one is raised there."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    def add(self, work: Work) -> None:
        """Start a task."""
        self._tasks.append(asyncio.create_task(work))

    async def failed(self) -> None:
        """Wait until a task has ended by an error; without one, wait for ever."""
        if self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.exception() for task in done):
                return
        await asyncio.Event().wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        errors = [each for each in ended if isinstance(each, Exception)]
        if errors and kind is None:
            raise errors[0]


async def first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Wait for the first to end, and cancel the others."""
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
