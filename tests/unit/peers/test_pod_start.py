"""Readiness waits for the first list of pods, for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from imdsproxy.peers.pod_watch import LONGEST_START, ApiError, Change, PodWatch
from imdsproxy.peers.pods import ChangeKind, PodState, PodTable
from imdsproxy.testing.clock import FakeClock


class Api:
    """An API server whose list fails until it is repaired, and whose watch never ends."""

    def __init__(self) -> None:
        self.works = False

    async def list(self) -> tuple[list[PodState], str]:
        if not self.works:
            raise ApiError("the API server answered 403")
        return [], "1"

    async def watch(self, version: str, seconds: int) -> AsyncGenerator[Change, None]:
        del seconds
        await asyncio.Event().wait()
        yield Change(ChangeKind.BOOKMARK, None, version)

    async def close(self) -> None:
        return


class Silent:
    def trouble(self, reason: str) -> None:
        del reason

    def good(self) -> None:
        return


def test_first_list_is_awaited_with_the_reason_and_for_a_bounded_time() -> None:
    async def test() -> None:
        clock, api, go_on = FakeClock(), Api(), asyncio.Semaphore(0)

        async def sleep(_seconds: float) -> None:
            await go_on.acquire()

        def why() -> str | None:
            return watch.obstacle

        watch = PodWatch(PodTable("n"), api, clock, Silent(), sleep)
        assert "the first list has just been requested" in str(why())
        watch.start()
        for _ in range(5):
            await asyncio.sleep(0)
        assert why() == "The pods of node n are not known yet: the API server answered 403"
        clock.advance(LONGEST_START - 1)
        assert why() is not None
        clock.advance(1)
        assert why() is None, "a node must not stay without IMDS"
        clock.advance(-10)
        api.works = True
        go_on.release()
        for _ in range(5):
            await asyncio.sleep(0)
        assert why() is None
        await watch.close()

    asyncio.run(test())
