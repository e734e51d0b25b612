"""How the tests are distributed over the processes of pytest-xdist.

The tests of a file run in one process, one after the other, because they share the file's proxies. The mark
`xdist_group("name")` takes a part of a file, or parts of several, into a group that is spread like a file.
Files with long work come first, so that no process ends with such a file alone while the others have nothing left.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_EARLY_MARKS = ("large", "system", "windows")
"""Marks of tests that take long, the longest first."""


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
    """Put the files with long work first; the tests of a file keep their order."""
    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(_rank(item), ranks.get(item.path, len(_EARLY_MARKS)))
    items.sort(key=lambda item: ranks[item.path])


def _rank(item: pytest.Item) -> int:
    marks = (rank for rank, mark in enumerate(_EARLY_MARKS) if item.get_closest_marker(mark))
    return next(marks, len(_EARLY_MARKS))
