"""Sending a request that may be recalled: ended before it is answered, because others need its permit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from imdsproxy.budget.shares import Recall

Result = TypeVar("Result")


async def unless_recalled(sending: Coroutine[Any, Any, Result], recall: Recall | None) -> Result | None:
    """Return what a request brought, or None if it was recalled. Without `recall` it is always seen out."""
    if recall is None:
        return await sending
    task = asyncio.get_running_loop().create_task(sending)
    recall.end = task.cancel
    try:
        return await task
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if this is not None and this.cancelling():
            raise
        return None
    finally:
        recall.end = None
