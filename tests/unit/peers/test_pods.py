"""The table of a node's pods."""

from __future__ import annotations

import pytest

from imdsproxy.peers.pods import (
    LONGEST_LABEL,
    MOST_LABELS,
    MOST_PODS,
    ChangeKind,
    PodState,
    PodTable,
    TooManyPodsError,
    bounded_labels,
)
from imdsproxy.protocol.peer import Pod

NOW = 100.0
HELD = 300.0


def state(name: str, *addresses: str, created: int = 0, **changes: object) -> PodState:
    fields = {"node": "a", "created": f"2026-01-01T00:00:{created:02}Z", **changes}
    return PodState(uid=name, pod=Pod("shop", name, "web"), addresses=addresses, **fields)  # type: ignore[arg-type]


def table(*states: PodState) -> PodTable:
    made = PodTable("a", HELD)
    made.replace(states, NOW)
    return made


def name_at(pods: PodTable, address: str, now: float = NOW) -> str | None:
    found = pods.find(address, now)
    return None if found is None else found.name


@pytest.mark.parametrize(
    ("states", "owner"),
    [
        ([], None),
        ([state("x", "10.0.0.1")], "x"),
        ([state("x", "10.0.0.2")], None),
        ([state("x", "10.0.0.2", "10.0.0.1")], "x"),
        ([state("x", "::ffff:10.0.0.1")], "x"),
        ([state("x", "10.0.0.1", finished=True)], None),
        ([state("x", "10.0.0.1", host_network=True)], None),
        ([state("x", "10.0.0.1", host_addresses=("10.0.0.1",))], None),
        ([state("x", "10.0.0.1", node="b")], None),
        ([state("x", "10.0.0.1", node="")], None),
        ([state("x")], None),
        ([state("x", "", "none", "10.0.0.1")], "x"),
        ([state("old", "10.0.0.1"), state("new", "10.0.0.1", created=1)], "new"),
        ([state("new", "10.0.0.1", created=1), state("old", "10.0.0.1")], "new"),
        ([state("old", "10.0.0.1"), state("new", "10.0.0.1", created=1, finished=True)], "old"),
        ([state("x", "10.0.0.1"), state("y", "10.0.0.1")], None),
        ([state("x", "10.0.0.1", created=1), state("y", "10.0.0.1", created=1), state("z", "10.0.0.1")], None),
    ],
)
def test_address_belongs_to_the_newest_pod_that_is_not_finished(states: list[PodState], owner: str | None) -> None:
    assert name_at(table(*states), "10.0.0.1") == owner


@pytest.mark.parametrize("address", ["fd00::1", "FD00:0::1", "fd00::1%eth0"])
def test_every_way_to_write_an_address_finds_the_same_pod(address: str) -> None:
    assert name_at(table(state("x", "10.0.0.1", "fd00::1")), address) == "x"


@pytest.mark.parametrize("address", ["", "-", "localhost", "10.0.0.300", "fe80::x", ":"])
def test_what_is_no_address_is_unknown(address: str) -> None:
    assert table(state("x", "10.0.0.1")).find(address, NOW) is None


def test_changes_take_effect_at_once() -> None:
    pods = table(state("x", "10.0.0.1"))
    pods.change(ChangeKind.ADDED, state("y", "10.0.0.2"), NOW)
    assert (name_at(pods, "10.0.0.1"), name_at(pods, "10.0.0.2"), len(pods)) == ("x", "y", 2)
    pods.change(ChangeKind.MODIFIED, state("x", "10.0.0.3"), NOW)
    assert (name_at(pods, "10.0.0.1"), name_at(pods, "10.0.0.3")) == (None, "x")
    pods.change(ChangeKind.MODIFIED, state("x", "10.0.0.3", finished=True), NOW)
    pods.change(ChangeKind.DELETED, state("y", "10.0.0.2"), NOW)
    assert (name_at(pods, "10.0.0.2"), name_at(pods, "10.0.0.3"), len(pods)) == (None, None, 0)
    pods.change(ChangeKind.DELETED, state("y", "10.0.0.2"), NOW)
    assert len(pods) == 0


def test_end_of_an_old_pod_leaves_the_address_to_its_successor() -> None:
    pods = table(state("old", "10.0.0.1"))
    pods.change(ChangeKind.ADDED, state("new", "10.0.0.1", created=1), NOW)
    pods.change(ChangeKind.DELETED, state("old", "10.0.0.1"), NOW)
    assert name_at(pods, "10.0.0.1") == "new"


def test_list_keeps_nothing_that_it_lacks() -> None:
    pods = table(state("x", "10.0.0.1"), state("y", "10.0.0.2"))
    pods.replace([state("y", "10.0.0.2")], NOW)
    assert (name_at(pods, "10.0.0.1"), name_at(pods, "10.0.0.2"), len(pods)) == (None, "y", 1)


def test_everything_is_unknown_before_the_first_list() -> None:
    pods = PodTable("a")
    assert not pods.known(NOW)
    assert pods.find("10.0.0.1", NOW) is None


@pytest.mark.parametrize("kind", [ChangeKind.BOOKMARK, ChangeKind.ADDED])
def test_table_is_unknown_without_a_sign_of_the_server(kind: ChangeKind) -> None:
    pods = table(state("x", "10.0.0.1"))
    assert name_at(pods, "10.0.0.1", NOW + HELD - 0.1) == "x"
    assert name_at(pods, "10.0.0.1", NOW + HELD) is None
    pods.change(kind, None, NOW + HELD)
    assert name_at(pods, "10.0.0.1", NOW + HELD) == "x"
    pods.heard(NOW + 2 * HELD)
    assert name_at(pods, "10.0.0.1", NOW + 3 * HELD - 0.1) == "x"


def many(count: int) -> list[PodState]:
    return [state(f"pod-{number}", f"10.1.{number // 250}.{number % 250 + 1}") for number in range(count)]


def test_list_that_is_too_long_changes_nothing() -> None:
    pods = table(state("x", "10.0.0.1"))
    with pytest.raises(TooManyPodsError):
        pods.replace(many(MOST_PODS + 1), NOW + HELD)
    assert name_at(pods, "10.0.0.1") == "x"
    assert not pods.known(NOW + HELD)


def test_pod_beyond_the_bound_is_left_out_and_a_known_one_may_still_change() -> None:
    pods = table(*many(MOST_PODS))
    with pytest.raises(TooManyPodsError, match="512"):
        pods.change(ChangeKind.ADDED, state("x", "10.0.0.1"), NOW)
    assert len(pods) == MOST_PODS
    assert name_at(pods, "10.0.0.1") is None
    pods.change(ChangeKind.MODIFIED, state("pod-0", "10.0.0.1"), NOW)
    pods.change(ChangeKind.ADDED, state("done", "10.0.0.2", finished=True), NOW)
    assert name_at(pods, "10.0.0.1") == "pod-0"


def test_labels_are_bounded() -> None:
    labels = {f"label-{number:03}": "x" for number in range(MOST_LABELS + 1)}
    assert bounded_labels({**labels, "a": "x" * (LONGEST_LABEL + 1)}) == tuple(sorted(labels.items()))[:MOST_LABELS]
