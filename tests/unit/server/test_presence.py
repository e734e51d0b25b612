"""Waiting for an answer until the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imdsproxy.protocol.messages import Response
from imdsproxy.records import Outcome, RequestRecord
from imdsproxy.server.asgi import unless_gone
from imdsproxy.server.extensions import PRESENCE_EXTENSION
from imdsproxy.server.presence import Presence
from tests.virtual import run

ANSWER = RequestRecord(Response(200, (), b""), "instance", Outcome.MISS)


class Answer:
    """An answer that comes after some seconds, and notes whether the waiting for it was ended."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.ended = False

    async def __call__(self) -> RequestRecord:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.ended = True
            raise
        return ANSWER


def _later(seconds: float, call: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, call)


def test_wait_for_returns_the_answer_to_a_connected_client() -> None:
    async def steps() -> None:
        presence = Presence()
        assert await presence.wait_for(Answer()()) is ANSWER
        presence.leave()
        await asyncio.sleep(1)  # nothing is cancelled afterwards

    run(steps())


def test_wait_for_ends_when_the_client_disconnects() -> None:
    async def steps() -> None:
        presence, answer = Presence(), Answer()
        _later(1, presence.leave)
        began = asyncio.get_running_loop().time()
        assert await presence.wait_for(answer()) is None
        assert asyncio.get_running_loop().time() == began + 1
        assert answer.ended
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(1)

    run(steps())


def test_wait_for_returns_none_for_a_disconnected_client() -> None:
    async def steps() -> None:
        presence, answer = Presence(), Answer()
        presence.leave()
        assert await presence.wait_for(answer()) is None
        assert not answer.ended  # it never began

    run(steps())


@pytest.mark.parametrize("goes", [False, True])
def test_wait_for_propagates_cancellation_by_the_server(goes: bool) -> None:
    async def steps() -> None:
        presence = Presence()
        task = asyncio.get_running_loop().create_task(presence.wait_for(Answer()()))
        await asyncio.sleep(0)
        task.cancel()
        if goes:
            presence.leave()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(steps())


def test_wait_returns_once_set_until_cleared() -> None:
    async def steps() -> None:
        presence = Presence()
        presence.set()
        await presence.wait()
        await presence.wait()
        presence.clear()
        _later(1, presence.set)
        began = asyncio.get_running_loop().time()
        await presence.wait()
        assert asyncio.get_running_loop().time() == began + 1

    run(steps())


def _receiver(*messages: tuple[float, dict[str, Any]]) -> Callable[[], Any]:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        seconds, message = next(waiting, (1e6, {}))
        await asyncio.sleep(seconds)
        return message

    return receive


@pytest.mark.parametrize(
    ("gone_after", "expected"), [(1.0, None), (9.0, ANSWER)], ids=["before the answer", "after the answer"]
)
def test_other_server_reports_a_disconnect_by_message(gone_after: float, expected: RequestRecord | None) -> None:
    async def steps() -> None:
        receive = _receiver((0.5, {"type": "http.request"}), (gone_after, {"type": "http.disconnect"}))
        assert await unless_gone(Answer()(), {}, receive) is expected
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(steps())


def test_own_server_needs_no_message_and_no_task() -> None:
    async def steps() -> None:
        presence = Presence()
        scope = {"extensions": {PRESENCE_EXTENSION: presence}}
        _later(1, lambda: tasks.append(len(asyncio.all_tasks())))
        tasks: list[int] = []
        assert await unless_gone(Answer()(), scope, _receiver()) is ANSWER
        assert tasks == [1]

    run(steps())
