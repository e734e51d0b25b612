"""The scheduler for pytest-xdist. It is separate from `spread`, because xdist is not installed everywhere."""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling

from tests.spread import scope


class BySharedWork(LoadGroupScheduling):  # type: ignore[misc]  # xdist brings no types
    """Keep the tests of a file together, and those of a group."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)
