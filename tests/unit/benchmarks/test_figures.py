"""The figures of the benchmarks: samples, rounds, ratios, goals."""

from __future__ import annotations

import math

import pytest

from benchmarks.figures import (
    DIRECT,
    NGINX,
    OURS,
    Bound,
    Figure,
    Goal,
    Unit,
)
from benchmarks.measures.rounds import rotated
from benchmarks.samples import median, most_in_a_second, percentile


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([5.0], 0.99, 5.0),
        ([1.0, math.inf], 1.0, math.inf),
    ],
)
def test_percentile_is_one_of_the_samples(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_median_is_the_middle_sample() -> None:
    assert median([9.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("number", "order"), [(0, ["a", "b", "c"]), (1, ["b", "c", "a"]), (2, ["c", "a", "b"]), (3, ["a", "b", "c"])]
)
def test_each_round_begins_with_another_server(number: int, order: list[str]) -> None:
    assert rotated(["a", "b", "c"], number) == order


@pytest.mark.parametrize(
    ("moments", "most"),
    [([], 0), ([0.0], 1), ([0.0, 0.5, 1.0], 2), ([0.0, 0.999, 1.0, 1.5, 1.9], 4), ([0.0, 5.0, 5.0, 5.0], 3)],
)
def test_most_in_any_second_finds_the_fullest_second(moments: list[float], most: int) -> None:
    assert most_in_a_second(moments) == most


@pytest.mark.parametrize(
    ("unit", "measured", "server", "ratio"),
    [
        ("/s", {OURS: 50.0, NGINX: 100.0}, NGINX, 0.5),
        ("ms", {OURS: 3.0, NGINX: 2.0}, NGINX, 1.5),
        ("/s", {OURS: 50.0, NGINX: 0.0}, NGINX, None),
        ("/s", {OURS: 50.0}, NGINX, None),
        ("/s", {NGINX: 100.0}, NGINX, None),
        ("/s", {OURS: 50.0}, OURS, None),
        ("ms", {OURS: 50.0, DIRECT: 20.0}, DIRECT, None),
        ("requests", {OURS: 40.0, NGINX: 80.0}, NGINX, None),
    ],
)
def test_ratio_is_ours_divided_by_the_peers(
    unit: Unit, measured: dict[str, float], server: str, ratio: float | None
) -> None:
    assert Figure(name="any", what="any", unit=unit, measured=measured).ratio(server) == ratio


@pytest.mark.parametrize(
    ("bound", "measured", "missed"),
    [
        ("under", 0.9, False),
        ("under", 1.0, True),
        ("at most", 1.0, False),
        ("at most", 1.1, True),
        ("at least", 1.0, False),
        ("at least", 0.9, True),
    ],
)
def test_goal_is_missed_or_reached(bound: Bound, measured: float, missed: bool) -> None:
    assert Goal(what="any", measured=measured, unit="x", bound=bound, goal=1.0).missed is missed
