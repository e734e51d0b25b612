from __future__ import annotations

import pytest

from imdsproxy.emulator import Arrival
from imdsproxy.testing.counting import account, matches, most_in_a_second


def arrival(target: str, at: float = 0.0, status: int | None = 200) -> Arrival:
    return Arrival(at, "GET", target.encode(), (), status)


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 1.0, 2.0], 1),
        ([0.0, 0.999, 1.998], 2),
        ([2.0, 0.0, 0.5, 0.9, 1.2, 1.3], 4),
        ([7.0] * 6, 6),
    ],
)
def test_busiest_second_is_any_second_but_not_its_end(times: list[float], most: int) -> None:
    assert most_in_a_second(times) == most


@pytest.mark.parametrize(
    ("wanted", "came", "same"),
    [
        ("/", "/metadata/instance", True),
        ("/metadata/instance", "/metadata/instance/compute?format=text", True),
        ("/metadata/instance", "/metadata/instances", False),
        ("/metadata/instance/compute", "/metadata/instance", False),
        ("/metadata/instance", "//METADATA/%69nstance", True),
        ("/metadata/instance?api-version=1", "/metadata/instance?b=2&API-Version=1", True),
        ("/metadata/instance?api-version=1", "/metadata/instance?api-version=2", False),
        ("/metadata/instance?api-version=1", "/metadata/instance", False),
        ("/a?resource=https://x", "/a?resource=https%3A%2F%2Fx", True),
        ("/a?nonce=", "/a?nonce=", True),
    ],
)
def test_target_matches_by_segments_and_parameters(wanted: str, came: str, same: bool) -> None:
    assert matches(arrival(came), wanted) is same


def test_account_lists_the_first_arrivals_with_their_time_and_status() -> None:
    assert account([]) == "No request reached IMDS."
    came = [arrival("/a", 10.0), arrival("/b", 10.25, None), arrival("/c", 12.0, 429)]
    assert account(came, most=2).splitlines() == [
        "3 reached IMDS, at most 2 of them in one second; real IMDS answers 5.",
        "   0.000 s  200  GET /a",
        "   0.250 s  ---  GET /b",
        "… and 1 more",
    ]
