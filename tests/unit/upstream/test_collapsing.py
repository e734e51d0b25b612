"""The memory that a collapsed fetch leaves behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from imdsproxy.protocol.messages import Failure
from imdsproxy.upstream.collapsing import CollapsedFetch, CollapsedFetches


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("begun", [True, False])
def test_fetch_is_freed_when_its_last_client_leaves(*, begun: bool) -> None:
    """A cycle would keep its request, up to half a megabyte, until the garbage collector runs."""

    async def never(fetch: CollapsedFetch[None]) -> Failure | None:
        del fetch
        await asyncio.get_running_loop().create_future()
        return None

    async def leave() -> None:
        fetches = CollapsedFetches[None]()
        fetch = fetches.start(None, never)
        freed = weakref.ref(fetch)
        if begun:
            await asyncio.sleep(0)
        fetches.leave(fetch)
        del fetch
        for _ in range(3):  # the cancelled task ends, then its callback runs
            await asyncio.sleep(0)
        assert not len(fetches)
        assert freed() is None

    asyncio.run(leave())
