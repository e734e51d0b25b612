"""Counts by client, for metrics: bounded, and by names that clients cannot choose."""

from __future__ import annotations

import pytest

from imdsproxy.ops.client_tallies import OTHER, OWN, REQUESTS_BETWEEN, ClientCounts, ClientTallies, label_of
from imdsproxy.ops.metrics import Metrics
from imdsproxy.protocol.peer import UNKNOWN, Peer, PeerKind, Pod


def user(number: int, process: int = 1) -> Peer:
    return Peer("127.0.0.1", number, process=process, kind=PeerKind.TCP)


@pytest.mark.parametrize(
    ("peer", "label"),
    [
        (UNKNOWN, OWN),
        (Peer(unknown="the connection has ended"), "unknown"),
        (Peer("127.0.0.1", 33, process=7, executable="/tmp/chosen", user_name="www"), "user www"),
        (Peer("127.0.0.1", 33, cgroup=7), "user 33"),
        (Peer(user="S-1-5-18", process=4), "user S-1-5-18"),
        (Peer(user=33, proxy="chosen", kind=PeerKind.UNIX), "user 33"),
        (Peer("127.9.9.9"), "loopback"),
        (Peer("10.0.0.7"), "10.0.0.7"),
        (Peer("fd00::1:2:3:4"), "fd00::/64"),
        (Peer("10.0.0.7", pod=Pod("shop", "web-7f9", "web")), "namespace shop"),
        (Peer("10.0.0.7", pod=Pod("n" * 253, "web", None)), "namespace " + "n" * 70),
    ],
)
def test_label_is_what_a_client_cannot_multiply(peer: Peer, label: str) -> None:
    assert label_of(peer) == label


def test_listed_clients_have_counts_and_all_others_are_one() -> None:
    tallies = ClientTallies(2)
    for number in (1, 2, 3, 4):
        tallies.add(user(number), requests=1, refused=number % 2)
    tallies.add(user(1), sent=1)
    assert tallies.counts() == {
        "user 1": ClientCounts(1, 1, 1),
        "user 2": ClientCounts(1, 0, 0),
        OTHER: ClientCounts(2, 0, 1),
    }


def test_nothing_is_counted_without_the_setting() -> None:
    tallies = ClientTallies(0)
    tallies.add(user(1), requests=1)
    assert tallies.counts() == {}
    assert b"imdsproxy_client" not in Metrics().text()


def test_flood_of_many_clients_adds_few_series_and_lowers_no_counter() -> None:
    tallies = ClientTallies(3)
    names: set[str] = set()
    other = 0
    for number in range(5 * REQUESTS_BETWEEN):
        tallies.add(Peer(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"), requests=1)
        counts = tallies.counts()
        assert len(counts) <= 4
        assert counts[OTHER].requests >= other
        other = counts[OTHER].requests
        names.update(counts)
    assert len(names) <= 3 + 1 + 5


def test_most_frequent_client_gets_a_place() -> None:
    tallies = ClientTallies(1)
    tallies.add(user(1), requests=1)
    for _ in range(REQUESTS_BETWEEN + 1):
        tallies.add(user(2), requests=1)
    counts = tallies.counts()
    assert counts["user 2"].requests >= 1
    assert "user 1" not in counts
    for _ in range(REQUESTS_BETWEEN + 1):
        tallies.add(user(3), requests=1)
    assert "user 2" in tallies.counts(), "it has not done twice as much"


def test_metrics_have_a_series_for_each_listed_client_and_others() -> None:
    metrics = Metrics(1)
    metrics.clients.add(user(1), requests=1, sent=2, refused=1)
    metrics.clients.add(user(2), requests=1)
    lines = metrics.text().decode().splitlines()
    assert 'imdsproxy_client_requests_total{client="user 1"} 1.0' in lines
    assert 'imdsproxy_client_upstream_requests_total{client="user 1"} 2.0' in lines
    assert 'imdsproxy_client_refused_total{client="user 1"} 1.0' in lines
    assert 'imdsproxy_client_requests_total{client="other"} 1.0' in lines
