"""The limit of repeated log lines."""

from __future__ import annotations

from imdsproxy.ops.log_limit import RepeatLimit


def test_admit_returns_the_number_of_omitted_lines() -> None:
    limit = RepeatLimit(5.0)
    table = [("a", 0.0, 0), ("a", 0.1, None), ("b", 0.2, 0), ("a", 4.9, None), ("a", 5.0, 2), ("a", 10.0, 0)]
    for place, now, left_out in table:
        assert limit.admit(place, now) == left_out, (place, now)
    assert limit.admit("b", 5.2) == 0
