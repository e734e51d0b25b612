from __future__ import annotations

import math

from imdsproxy.budget.bucket_state import NO_LOAN, State, resized

NOW = 1_000.0


def test_new_state_has_every_permit_available() -> None:
    state = State(2, 1.0)
    assert (state.rests_from, state.holders, state.lent_at) == ([-math.inf] * 2, [NO_LOAN] * 2, [-math.inf] * 2)


def test_fewer_permits_are_those_that_return_last() -> None:
    state = State(3, 1.0, [NOW - 9, NOW + 5, NOW - 1], [NO_LOAN, 7, NO_LOAN], [NOW - 10, NOW - 2, NOW - 3])
    smaller = resized(state, 2, 2.0, NOW)
    assert (smaller.requests, smaller.window) == (2, 2.0)
    assert (smaller.rests_from, smaller.holders) == ([NOW + 5, NOW - 1], [7, NO_LOAN])
    assert smaller.lent_at == [NOW - 2, NOW - 3]


def test_additional_permits_rest_from_now() -> None:
    larger = resized(State(1, 1.0, [NOW - 9], [NO_LOAN], [NOW - 10]), 3, 1.0, NOW)
    assert sorted(larger.rests_from) == [NOW - 9, NOW, NOW]
    assert larger.holders == [NO_LOAN] * 3
