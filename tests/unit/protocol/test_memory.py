from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.protocol.memory import Remembered


class Doubled:
    """A function that counts its calls; a number's result takes as many bytes as the number says."""

    def __init__(self, max_bytes: int) -> None:
        self.calls: list[int] = []
        self.remembered = Remembered(self._double, lambda number, _result: number, max_bytes)

    def _double(self, number: int) -> int:
        self.calls.append(number)
        return 2 * number


def test_result_is_computed_once() -> None:
    doubled = Doubled(100)
    assert [doubled.remembered(10), doubled.remembered(10)] == [20, 20]
    assert doubled.calls == [10]
    assert doubled.remembered.bytes == 10


def test_result_that_is_used_again_outlives_one_that_is_not() -> None:
    doubled = Doubled(100)
    for number in (10, 11, 12, 13, 14):
        doubled.remembered(number)
        doubled.remembered(10)
    for number in range(15, 20):
        doubled.remembered(number)
        doubled.remembered(10)
    assert doubled.calls.count(10) == 1
    doubled.remembered(11)
    assert doubled.calls.count(11) == 2


@pytest.mark.parametrize("max_bytes", [0, 1, 19])
def test_result_above_half_of_the_bound_is_not_remembered(max_bytes: int) -> None:
    doubled = Doubled(max_bytes)
    assert [doubled.remembered(10), doubled.remembered(10)] == [20, 20]
    assert doubled.calls == [10, 10]
    assert doubled.remembered.bytes == 0


@given(st.integers(0, 200), st.lists(st.integers(1, 60), max_size=200))
def test_results_are_correct_within_the_bound(max_bytes: int, numbers: list[int]) -> None:
    doubled = Doubled(max_bytes)
    for number in numbers:
        assert doubled.remembered(number) == 2 * number
        assert doubled.remembered.bytes <= max_bytes
        generations = (doubled.remembered._young, doubled.remembered._old)
        assert doubled.remembered.bytes == sum(sum(generation) for generation in generations)
