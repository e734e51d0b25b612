from __future__ import annotations

import pytest

from imdsproxy.policy.endpoints import STABLE_LEAVES, is_usual, row_of, split
from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target

# As documented.
STABLE = [
    *("vmId", "location", "zone", "name", "subscriptionId", "resourceId", "resourceGroupName", "azEnvironment"),
    *("osType", "publisher", "offer", "sku", "version", "vmSize", "vmScaleSetName", "placementGroupId"),
    *("platformFaultDomain", "platformUpdateDomain"),
]


def test_stable_leaves_are_those_documented() -> None:
    assert frozenset(leaf.lower() for leaf in STABLE) == STABLE_LEAVES


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("/metadata", "/metadata"),
        ("/metadata/unknown", "/metadata"),
        ("/metadata/versions", "/metadata/versions"),
        ("/metadata/versions/more", "/metadata"),
        ("/metadata/instance/network/interface/0", "/metadata/instance/network"),
        ("/metadata/instance/compute/unknown", "/metadata/instance"),
        ("/Metadata/Instance/Compute/vmId", "/metadata/instance/compute/vmid"),
        ("/metadata/instance/compute/sku/more", "/metadata/instance/compute/sku"),
        ("/metadata/identity/oauth2", "/metadata/identity"),
        ("/metadata/identity/oauth2/token", "/metadata/identity/oauth2/token"),
        ("/metadata/identity/oauth2/token/more", "/metadata/identity"),
        ("/metadata/identity/info/more", "/metadata/identity"),
    ],
)
def test_row_is_that_of_the_longest_prefix_and_single_documents_have_nothing_below(path: str, row: str) -> None:
    assert row_of(split(path)).path == split(row)


@pytest.mark.parametrize(
    ("query", "usual"),
    [
        ("?api-version=2020-07-01", True),
        ("?API-Version=2024-07-09", True),
        ("?api-version=2020-07-02", False),
        ("?api-version=2020-07-01&x=1", False),
        ("?x=2020-07-01", False),
        ("", False),
    ],
)
def test_usual_scheduled_events_target_is_a_known_version_and_nothing_else(query: str, usual: bool) -> None:
    target = read_target(f"/metadata/scheduledevents{query}".encode())
    assert isinstance(target, Target)
    assert is_usual(target) is usual
