from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.emulator.limits import Limits, SlidingWindow


@pytest.mark.parametrize(
    ("limit", "arrivals", "accepted"),
    [
        (5, [0.0] * 6, [0.0] * 5),
        (2, [0.0, 0.5, 0.75, 1.0, 1.25, 1.5], [0.0, 0.5, 1.0, 1.5]),
        (1, [0.0, 0.999999, 1.0], [0.0, 1.0]),
        (0, [0.0] * 100, [0.0] * 100),
    ],
)
def test_window_slides_with_time(limit: int, arrivals: list[float], accepted: list[float]) -> None:
    limits = Limits(general=limit)
    assert [at for at in arrivals if limits.admit(at)] == accepted


# Sixty-fourths of a second, so that differences are exact.
gaps = st.lists(st.integers(0, 80), max_size=200)


@given(gaps, st.integers(1, 7))
def test_window_admits_exactly_the_limit(steps: list[int], limit: int) -> None:
    limits = Limits(general=limit)
    now, accepted = 0.0, list[float]()
    for step in steps:
        now += step / 64
        in_window = [at for at in accepted if now - at < 1.0]
        admitted = limits.admit(now)
        assert admitted == (len(in_window) < limit)
        if admitted:
            accepted.append(now)
    for start in accepted:
        assert sum(start <= at < start + 1.0 for at in accepted) <= limit


def test_identity_has_its_own_limits() -> None:
    limits = Limits(general=1, identity=2, identity_concurrency=0)
    assert [limits.admit(0.0, identity=True) for _ in range(3)] == [True, True, False]
    assert [limits.admit(0.0) for _ in range(2)] == [True, False]


def test_identity_may_share_the_general_limit() -> None:
    limits = Limits(general=2, identity=20, identity_shares_general=True)
    assert [limits.admit(0.0, identity=True), limits.admit(0.0)] == [True, True]
    assert [limits.admit(0.0, identity=True), limits.admit(0.0)] == [False, False]


def test_sixth_concurrent_identity_request_is_refused() -> None:
    limits = Limits(general=1)
    assert [limits.admit(0.0, identity=True) for _ in range(6)] == [True] * 5 + [False]
    assert not limits.admit(60.0, identity=True), "a slow answer keeps its place, however long"
    limits.leave(identity=True)
    assert limits.admit(60.0, identity=True)
    assert limits.admit(60.0), "the general class has no such limit"
    limits.leave()
    assert limits.identities_in_flight == 5


def test_refused_arrival_counts_for_nothing() -> None:
    limits = Limits(general=1, identity=1, identity_concurrency=0, identity_shares_general=True)
    assert limits.admit(0.0)
    assert not limits.admit(0.5, identity=True)
    assert limits.admit(1.0, identity=True)


def test_window_remembers_no_more_than_its_limit() -> None:
    window = SlidingWindow(3)
    for at in range(100):
        if window.has_room(at / 100):
            window.take(at / 100)
    assert len(window._accepted) == 3
