"""How the tests are distributed over the processes of pytest-xdist.

The tests of a file run in one process, one after the other, because they share the file's proxies. The mark
`xdist_group("name")` takes a part of a file, or parts of several, into a group that is spread like a file.
Files that start processes wait for them most of the time, those with long work the longest. They begin with the long
ones, so that no process ends with such a file alone while the others have nothing left. Files that only compute stand
between them, evenly, so that the processor has work while others wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

_EARLY_MARKS = ("large", "system", "windows", "client", "process")
"""Marks of tests that wait, the longest first."""
_LAST_WAIT = 0.85
"""The part of the order that has files that wait. What follows only computes, in pieces so small that all processes end
together."""


def scope(nodeid: str) -> str:
    """Return what has to run in one process with this test: its group, or else its file."""
    # xdist appends "@group"; an "@" within the brackets belongs to a parameter.
    _, separator, group = nodeid[nodeid.rfind("]") + 1 :].rpartition("@")
    return group if separator else nodeid.partition("::")[0]


def name_groups(items: list[pytest.Item]) -> None:
    """Append the group to the names of its tests.

    xdist 3.8 means to, but writes an attribute that pytest 9.2 does not read.
    """
    for item in items:
        suffix = "@" + "_".join(sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")}))
        if suffix != "@" and not item.nodeid.endswith(suffix):
            item._id = type(item._id).parse(item.nodeid + suffix)


def sort(items: list[pytest.Item]) -> None:
    """Put the files in the order of `places`; the tests of a file keep their order."""
    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(_rank(item), ranks.get(item.path, len(_EARLY_MARKS)))
    place = places(ranks.items())
    items.sort(key=lambda item: place[item.path])


def places(ranks: Iterable[tuple[Path, int]]) -> dict[Path, float]:
    """Return the place of each file between 0 and 1, by its rank: those that wait by rank, the others among them.

    The last places have none that waits.
    """
    ordered = sorted(ranks, key=lambda one: one[1])
    waiting = [path for path, rank in ordered if rank < len(_EARLY_MARKS)]
    computing = [path for path, rank in ordered if rank == len(_EARLY_MARKS)]
    return {
        path: end * (number + 0.5) / len(paths)
        for paths, end in ((waiting, _LAST_WAIT), (computing, 1.0))
        for number, path in enumerate(paths)
    }


def _rank(item: pytest.Item) -> int:
    marks = {mark.name for mark in item.iter_markers()}
    return next((rank for rank, mark in enumerate(_EARLY_MARKS) if mark in marks), len(_EARLY_MARKS))
