from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.ops.counts import OTHER, MostFrequent, Timeline

Added = list[tuple[str, float]]


def timeline(*added: tuple[str, float], seconds: float = 10.0, periods: int = 3, most: int = 16) -> Timeline:
    made = Timeline(seconds, periods, most)
    for word, now in added:
        made.add(word, now)
    return made


@pytest.mark.parametrize(
    ("added", "now", "rows"),
    [
        ([], 100.0, ({}, {}, {})),
        ([("a", 100.0)], 100.0, ({}, {}, {"a": 1})),
        ([("a", 100.0), ("a", 109.9), ("b", 109.9)], 109.9, ({}, {}, {"a": 2, "b": 1})),
        ([("a", 109.9), ("a", 110.0)], 110.0, ({}, {"a": 1}, {"a": 1})),
        ([("a", 100.0)], 129.9, ({"a": 1}, {}, {})),
        ([("a", 100.0)], 130.0, ({}, {}, {})),
        ([("a", 100.0), ("b", 1000.0)], 1000.0, ({}, {}, {"b": 1})),
        ([("a", 110.0), ("b", 100.0)], 110.0, ({}, {}, {"a": 1, "b": 1})),
    ],
    ids=["empty", "one", "one period", "two periods", "last of its time", "gone", "long pause", "clock goes back"],
)
def test_timeline_rows_are_the_counts_of_each_period(added: Added, now: float, rows: tuple[dict[str, int]]) -> None:
    assert timeline(*added).rows(now) == rows


def test_timeline_counts_words_without_room_as_other() -> None:
    made = timeline(("a", 0.0), ("b", 0.0), ("c", 0.0), ("a", 0.0), ("d", 0.0), most=2)
    assert made.rows(0.0)[-1] == {"a": 2, "b": 1, OTHER: 2}


def test_timeline_totals_come_most_frequent_first() -> None:
    made = timeline(("b", 0.0), ("a", 0.0), ("c", 10.0), ("c", 20.0))
    assert list(made.totals(20.0).items()) == [("c", 2), ("a", 1), ("b", 1)]


def test_timeline_adds_several_at_once() -> None:
    made = timeline()
    made.add("a", 0.0, 5)
    assert made.totals(0.0) == {"a": 5}


@given(st.lists(st.sampled_from("abcdefgh"), max_size=200), st.integers(1, 8))
def test_most_frequent_is_never_too_low_and_at_most_its_share_too_high(words: list[str], most: int) -> None:
    table = MostFrequent(most)
    for word in words:
        table.add(word)
    exact = Counter(words)
    found = dict(table.top(most))
    assert len(found) <= most
    for word, count in found.items():
        assert exact[word] <= count <= exact[word] + len(words) // most
    for word, count in exact.items():
        assert word in found or count <= len(words) // most


def test_most_frequent_lists_as_many_as_wanted_in_order() -> None:
    table = MostFrequent(8)
    for word in "bacacc":
        table.add(word)
    assert table.top(2) == (("c", 3), ("a", 2))
