"""A recalled request ends, and its task continues."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from imdsproxy.budget.shares import Recall
from imdsproxy.upstream.recalling import unless_recalled
from tests import virtual


async def answer(after: float) -> str:
    await asyncio.sleep(after)
    return "answer"


async def stubborn() -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(9)
    return "a timeout, in the moment of the recall"


def recall_after(seconds: float, recall: Recall) -> None:
    def end() -> None:
        assert recall.end is not None
        recall.end()

    asyncio.get_running_loop().call_later(seconds, end)


def test_request_without_a_recall_returns_its_answer() -> None:
    async def scenario() -> None:
        recall = Recall()
        assert await unless_recalled(answer(1), recall) == "answer"
        assert recall.end is None
        assert await unless_recalled(answer(1), None) == "answer"

    virtual.run(scenario())


def test_recalled_request_ends_at_once_and_its_task_continues() -> None:
    async def scenario() -> None:
        loop, recall = asyncio.get_running_loop(), Recall()
        began = loop.time()
        for _ in range(2):
            recall_after(1, recall)
            assert await unless_recalled(answer(9), recall) is None
            assert recall.end is None
        assert loop.time() - began == 2.0
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    virtual.run(scenario())


@pytest.mark.parametrize("recalled", [False, True])
def test_cancelled_task_ends_although_its_request_was_recalled(recalled: bool) -> None:
    async def scenario() -> None:
        recall = Recall()
        task = asyncio.get_running_loop().create_task(unless_recalled(answer(9), recall))
        await asyncio.sleep(1)
        if recalled:
            assert recall.end is not None
            recall.end()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    virtual.run(scenario())


def test_answer_at_the_moment_of_the_recall_counts() -> None:
    async def scenario() -> None:
        recall = Recall()
        recall_after(1, recall)
        assert await unless_recalled(stubborn(), recall) == "a timeout, in the moment of the recall"
        recall_after(1, recall)
        assert await unless_recalled(answer(9), recall) is None

    virtual.run(scenario())
