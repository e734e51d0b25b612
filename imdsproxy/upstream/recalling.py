"""Send a request that may be recalled: cancelled before its answer, because other requests need its permit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from imdsproxy.budget.shares import Recall

Result = TypeVar("Result")


async def unless_recalled(sending: Coroutine[Any, Any, Result], recall: Recall | None) -> Result | None:
    """Return the result of a request, or None if it was recalled. Without `recall` it is never recalled.

    It is sent in the current task, because in a task of its own it would reach IMDS a step later.
    """
    task = asyncio.current_task()
    if recall is None or task is None:
        return await sending
    recalled = False
    cancelling = task.cancelling()

    def end() -> None:
        nonlocal recalled
        recalled = True
        recall.end = None
        task.cancel()

    recall.end = end
    try:
        return await sending
    except asyncio.CancelledError:
        if not recalled or task.cancelling() > cancelling + 1:  # something else has cancelled the task
            raise
        return None
    finally:
        recall.end = None
        if recalled:
            task.uncancel()
