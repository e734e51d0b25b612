"""The groups of users, each looked up by itself."""

from __future__ import annotations

import asyncio
import functools
import os
import pwd
import threading
from collections.abc import Callable, Coroutine

import pytest

from imdsproxy.access import groups
from imdsproxy.access.groups import KNOWN_FOR, LONGEST_WAIT, Memberships, groups_of
from imdsproxy.testing.clock import FakeClock


def run(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Make a test of a coroutine. The loop has threads."""

    @functools.wraps(test)
    def running() -> None:
        asyncio.run(test())

    return running


class Directory:
    """A user database that counts its questions."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.members = {33: frozenset({33, 100})}

    def look(self, user: int) -> frozenset[int] | None:
        self.asked.append(user)
        return self.members.get(user)


@run
async def test_groups_are_unknown_until_they_are_learnt_and_again_after_a_minute() -> None:
    directory, clock = Directory(), FakeClock()
    memberships = Memberships(directory.look, clock.monotonic)
    assert memberships.known(33) is None
    await asyncio.gather(*(memberships.learn(33) for _ in range(5)))
    await memberships.learn(33)
    assert (memberships.known(33), directory.asked) == (frozenset({33, 100}), [33])
    directory.members[33] = frozenset({33})
    clock.advance(KNOWN_FOR - 0.1)
    assert memberships.known(33) == frozenset({33, 100})
    await memberships.learn(33)  # they would expire between this and the decision
    assert memberships.known(33) == frozenset({33})
    clock.advance(KNOWN_FOR)
    assert memberships.known(33) is None


@run
async def test_user_that_the_database_does_not_have_has_unknown_groups_and_is_not_asked_for_again() -> None:
    directory, clock = Directory(), FakeClock()
    memberships = Memberships(directory.look, clock.monotonic)
    for _ in range(3):
        await memberships.learn(34)
        await memberships.learn("S-1-5-18")
    assert (memberships.known(34), directory.asked) == (None, [34])


@run
async def test_what_was_asked_before_the_groups_were_forgotten_is_not_used() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def look(_user: int) -> frozenset[int]:
        begun.set()
        go_on.wait(10)
        return frozenset({1})

    memberships = Memberships(look, FakeClock().monotonic)
    learning = asyncio.create_task(memberships.learn(33))
    await asyncio.to_thread(begun.wait, 10)
    memberships.forget()
    go_on.set()
    await learning
    assert memberships.known(33) is None


@run
async def test_request_waits_for_a_directory_for_a_bounded_time() -> None:
    go_on = threading.Event()
    waited: list[float | None] = []

    def look(_user: int) -> frozenset[int]:
        go_on.wait(10)
        return frozenset({1})

    real = asyncio.wait

    async def wait(tasks: set[asyncio.Task[None]], *, timeout: float | None = None) -> object:  # noqa: ASYNC109  # as asyncio's
        waited.append(timeout)
        return await real(tasks, timeout=0)

    memberships = Memberships(look, FakeClock().monotonic)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups.asyncio, "wait", wait)  # type: ignore[attr-defined]  # a module's own import
        await memberships.learn(33)
    assert (memberships.known(33), waited) == (None, [LONGEST_WAIT])
    go_on.set()
    await memberships.learn(33)
    assert memberships.known(33) == frozenset({1})


@run
async def test_table_of_users_is_bounded() -> None:
    memberships = Memberships(lambda user: frozenset({user}), FakeClock().monotonic)
    for user in range(1100):
        await memberships.learn(user)
    assert len(memberships._known) <= 1024
    assert memberships.known(1099) == frozenset({1099})


def test_groups_of_this_user_have_its_primary_group() -> None:
    me = pwd.getpwuid(os.getuid())
    assert me.pw_gid in (groups_of(me.pw_uid) or ())
    assert groups_of(4_000_000_001) is None
