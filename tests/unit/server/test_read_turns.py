"""Turns of the event loop in which too many connections send."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from imdsproxy.server.read_turns import MOST_EVENTS, ReadTurns


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_turn_is_long_from_as_many_reads_on_as_the_loop_takes_at_a_time(loop_factory: object) -> None:
    async def turns() -> None:
        loop = asyncio.get_running_loop()
        reads = ReadTurns()
        for _ in range(3):
            assert [reads.take_long(loop) for _ in range(MOST_EVENTS - 1)] == [False] * (MOST_EVENTS - 1)
            assert [reads.take_long(loop) for _ in range(3)] == [True] * 3
            await asyncio.sleep(0)  # the next turn

    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]  # uvloop's own type
        runner.run(turns())


def test_reads_over_many_turns_are_no_long_turn() -> None:
    async def turns() -> None:
        reads = ReadTurns()
        for _ in range(50):
            for _ in range(MOST_EVENTS // 4):
                assert not reads.take_long(asyncio.get_running_loop())
            await asyncio.sleep(0)

    asyncio.run(turns())
