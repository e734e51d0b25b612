"""What the tour of the demo says about answers and about arrivals at IMDS."""

from __future__ import annotations

import pytest

from imdsproxy.cli.tour_text import Arrival, most_in_a_second, outcome, outcomes, read_arrival, sent_to_imds, summary


@pytest.mark.parametrize(
    ("status", "cache_status", "expected"),
    [
        (200, "imdsproxy; fwd=uri-miss; fwd-status=200; ttl=60; stored", "miss"),
        (200, "imdsproxy; hit; ttl=56", "hit"),
        (200, "imdsproxy; hit; ttl=0", "hit"),
        (200, "imdsproxy; hit; ttl=-1; detail=stale-if-error", "stale"),
        (200, "imdsproxy; fwd=uri-miss; collapsed", "collapsed"),
        (429, "imdsproxy; detail=budget", "429 (budget)"),
        (404, "imdsproxy; fwd=uri-miss; fwd-status=404; stored", "404"),
        (502, "", "502"),
        (200, "", "miss"),
    ],
)
def test_outcome_is_read_from_cache_status(status: int, cache_status: str, expected: str) -> None:
    assert outcome(status, cache_status) == expected


def test_outcomes_are_counted_in_their_order() -> None:
    assert outcomes(["miss", "collapsed", "collapsed", "miss", "403 (denied)"]) == "2 miss, 2 collapsed, 1 403 (denied)"
    assert outcomes([]) == ""


def test_arrival_is_read_from_the_emulators_list() -> None:
    assert read_arrival({"at": 1.5, "method": "GET", "target": "/", "status": None}) == Arrival(1.5, None)


@pytest.mark.parametrize(
    ("times", "most"),
    [([], 0), ([5.0], 1), ([0.0, 0.5, 0.999], 3), ([0.0, 1.0, 2.0], 1), ([3.0, 0.0, 3.9, 0.4, 3.2], 3)],
)
def test_most_in_a_second_is_over_every_window(times: list[float], most: int) -> None:
    assert most_in_a_second([Arrival(at, 200) for at in times]) == most


def test_requests_to_imds_are_told_with_their_failures() -> None:
    fine, unanswered = Arrival(0, 200), Arrival(0, None)
    assert sent_to_imds([]) == "Requests to IMDS: 0"
    assert sent_to_imds([fine, unanswered]) == "Requests to IMDS: 2"
    failed = [Arrival(0, 410), fine, Arrival(0, 410), Arrival(0, 500)]
    assert sent_to_imds(failed) == "Requests to IMDS: 4 (2 answered 410, 1 answered 500)"


def test_summary_has_all_three_figures() -> None:
    arrivals = [Arrival(0, 200), Arrival(0.5, 410), Arrival(9, 200)]
    assert summary(7, arrivals) == "7 requests of clients, 3 requests to IMDS, at most 2 of them in any second."
