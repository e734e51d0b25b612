"""The groups of users, for rules that name groups.

Each user is looked up by itself, by getgrouplist(3), because a directory service such as SSSD does not list the members
of its groups. It may take seconds to answer, so a lookup runs in a thread, and only the full path waits for it. Until
then the groups of a user are unknown, and grant nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

KNOWN_FOR = 60.0
"""Seconds for which the groups of a user are used."""
LONGEST_WAIT = 5.0
"""Seconds for which a request waits for them."""
_MOST_USERS = 1024

User = int | str


class Memberships:
    """What is known of the groups of users. Only the event loop's thread may use it."""

    def __init__(
        self,
        look: Callable[[int], frozenset[int] | None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing known.

        Args:
            look: Returns the groups of a user, or None if they are unknown; called in a thread.
            now: A monotonic clock, in seconds.
        """
        self._look = look or groups_of
        self._now = now
        self._known: dict[User, tuple[float, frozenset[int] | None]] = {}
        self._asking: dict[User, asyncio.Task[None]] = {}

    def known(self, user: User) -> frozenset[int] | None:
        """Return the groups of a user, or None if they are unknown."""
        until, groups = self._known.get(user, (0.0, None))
        return groups if self._now() < until else None

    async def learn(self, user: User) -> None:
        """Look the groups of a user up, unless they are known. It waits for `LONGEST_WAIT` at most."""
        until = self._known.get(user, (0.0, None))[0]
        if not isinstance(user, int) or self._now() < until - LONGEST_WAIT:  # a decision soon after needs them, too
            return
        asking = self._asking.get(user)
        if asking is None:
            asking = self._asking[user] = asyncio.get_running_loop().create_task(self._ask(user))
        await asyncio.wait({asking}, timeout=LONGEST_WAIT)

    def forget(self) -> None:
        """Forget all groups."""
        self._known = {}

    async def _ask(self, user: int) -> None:
        try:
            known = self._known
            groups = await asyncio.to_thread(self._look, user)
            if len(known) >= _MOST_USERS:
                known.clear()
            known[user] = self._now() + KNOWN_FOR, groups  # in the table of the beginning, which may be forgotten
        finally:
            del self._asking[user]


def groups_of(user: int) -> frozenset[int] | None:
    """Return the groups of a user of this machine; None if the user database has no such user."""
    if sys.platform == "win32":
        return None
    else:  # noqa: RET505  # the type checker takes only a branch as unreachable
        import pwd  # noqa: PLC0415  # Windows has none

        try:
            found = pwd.getpwuid(user)
            return frozenset(os.getgrouplist(found.pw_name, found.pw_gid))
        except (KeyError, OSError):
            return None
