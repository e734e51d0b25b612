"""The queue in which clients take turns; what its order comes to is in `tests/proxy/test_turns.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.budget.fair_queue import FairQueue


def emptied(turns: FairQueue[str]) -> list[str]:
    order = []
    while turns:
        assert turns.first() in turns
        order.append(turns.take())
    return order


def test_an_empty_queue_has_no_first() -> None:
    turns: FairQueue[str] = FairQueue()
    assert (len(turns), "x" in turns, turns.waiting("a"), turns.ahead_of_new("a", "x")) == (0, False, 0, 0)
    with pytest.raises(LookupError):
        turns.first()


def test_what_two_clients_wait_for_leaves_both_queues_at_once() -> None:
    turns: FairQueue[str] = FairQueue()
    for item in ("1", "2", "3"):
        turns.add(item, "a", "x")
    turns.add("3", "b", "x")
    turns.add("3", "b", "x")
    assert (turns.waiting("a"), turns.waiting("b"), len(turns)) == (3, 1, 3)
    assert emptied(turns) == ["1", "3", "2"]
    assert (turns.waiting("a"), turns.waiting("b")) == (0, 0)


def test_what_is_taken_out_leaves_no_trace() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("1", "a", "x")
    turns.add("1", "b", "y")
    turns.add("2", "a", "x")
    turns.remove("1")
    assert "1" not in turns
    assert emptied(turns) == ["2"]
    with pytest.raises(KeyError):
        turns.remove("1")


NAMES = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"))


@given(st.lists(NAMES, max_size=30), NAMES)
def test_no_more_are_served_before_a_new_one_than_are_told(places: list[tuple[str, str]], new: tuple[str, str]) -> None:
    turns: FairQueue[int] = FairQueue()
    for number, place in enumerate(places):
        turns.add(number, *place)
    told = turns.ahead_of_new(*new)
    turns.add(-1, *new)
    order = []
    while -1 in turns:
        order.append(turns.take())
    assert len(order) - 1 <= told <= len(places)


@given(st.lists(NAMES, min_size=1, max_size=40))
def test_everyone_is_served_once_and_nobody_twice_while_another_waits(places: list[tuple[str, str]]) -> None:
    turns: FairQueue[int] = FairQueue()
    for number, place in enumerate(places):
        turns.add(number, *place)
    left = [client for client, _ in places]
    last_served: dict[str, int] = {}
    for step in range(len(places)):
        client = places[turns.take()][0]
        waiting = set(left)
        for other in waiting - {client}:
            assert last_served.get(other, -1) >= last_served.get(client, -1) or client not in last_served
        last_served[client] = step
        left.remove(client)
    assert not left
    assert not turns
