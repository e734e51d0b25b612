from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")

if sys.platform == "linux":
    from imdsproxy.budget.file_presence import is_marked_by_another, mark, mark_if_alone, unmark

BEYOND_THE_END = 1 << 20


@pytest.fixture
def descriptors(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Return one file, opened twice: its locks are those of two processes."""
    path = tmp_path / "file"
    path.touch()
    one, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    yield one, other
    os.close(one)
    os.close(other)


def test_mark_is_seen_by_other_processes_for_its_own_byte(descriptors: tuple[int, int]) -> None:
    one, other = descriptors
    mark(one, BEYOND_THE_END)
    assert is_marked_by_another(other, BEYOND_THE_END)
    assert not is_marked_by_another(one, BEYOND_THE_END)
    assert not is_marked_by_another(other, BEYOND_THE_END + 1)


def test_mark_of_each_process_counts_until_it_is_removed(descriptors: tuple[int, int]) -> None:
    one, other = descriptors
    mark(one, 7)
    mark(other, 7)
    unmark(one, 7)
    assert is_marked_by_another(one, 7)
    assert not is_marked_by_another(other, 7)


def test_mark_ends_when_its_file_is_closed(tmp_path: Path, descriptors: tuple[int, int]) -> None:
    _, other = descriptors
    path = tmp_path / "file"
    third = os.open(path, os.O_RDWR)
    mark(third)
    os.close(os.open(path, os.O_RDWR))
    assert is_marked_by_another(other, 0)
    os.close(third)
    assert not is_marked_by_another(other, 0)


def test_first_process_is_alone_and_second_is_not(descriptors: tuple[int, int]) -> None:
    one, other = descriptors
    assert mark_if_alone(one)
    assert not mark_if_alone(other)
    assert is_marked_by_another(one, 0), "it is marked all the same"
