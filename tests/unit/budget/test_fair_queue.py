"""The fair queue. Its effect on clients is tested in `tests/proxy/test_turns.py`."""

from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.budget.fair_queue import FairQueue

A, B = ("a", "1"), ("b", "1")
PATHS = st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from("xyz"))
Path = tuple[str, str, str]


class Naive:
    """The same queue, written to be obviously right: it looks at everything that waits."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Path, int]] = []
        self._served: dict[tuple[str, ...], int] = {}
        self._place: dict[tuple[tuple[str, ...], str], int] = {}
        self._step = 0

    def add(self, item: int, path: Path) -> None:
        for length in range(1, 4):
            kinds = {other[-1] for other, _ in self.waiting if other[:length] == path[:length]}
            self._step += 1
            if not kinds:
                self._served[path[:length]] = self._step  # it comes last, as one that has just been served
            if path[-1] not in kinds:
                self._place[path[:length], path[-1]] = self._step
        self.waiting.append((path, item))

    def take(self, skipped: str = "") -> int:
        """Take, level by level, what was served or came the longest ago."""
        ready = [(path, item) for path, item in self.waiting if path[-1] not in skipped]
        for length in range(1, 4):
            waiting = {(path[:length], path[-1]) for path, _ in ready}
            heads = [
                min((one for one in waiting if one[1] == kind), key=self._place.__getitem__)[0]
                for kind in {kind for _, kind in waiting}
            ]
            first = min(heads, key=self._served.__getitem__)
            ready = [(path, item) for path, item in ready if path[:length] == first]
        path, item = ready[0]
        self.waiting.remove((path, item))
        for length in range(1, 4):
            self._step += 1
            self._served[path[:length]] = self._step
            for kind in "xyz":
                self._place[path[:length], kind] = self._step
        return item


def emptied(queue: FairQueue[str]) -> list[str]:
    order = []
    while queue:
        assert queue.first() in queue
        order.append(queue.take())
    return order


def test_first_of_an_empty_queue_is_none() -> None:
    queue: FairQueue[str] = FairQueue()
    assert (len(queue), "x" in queue, queue.waiting(A), queue.ahead_of_new(A, "x")) == (0, False, 0, 0)
    assert queue.first() is None
    with pytest.raises(LookupError):
        queue.take()


def test_item_of_two_clients_leaves_both_queues_at_once() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("1", "2", "3"):
        queue.add(item, A, "x")
    queue.add("3", B, "x")
    queue.add("3", B, "x")
    assert (queue.waiting(A), queue.waiting(B), len(queue)) == (3, 1, 3)
    assert queue.kinds == {"x": 3}
    assert emptied(queue) == ["1", "3", "2"]
    assert (queue.waiting(A), queue.waiting(B), queue.kinds) == (0, 0, {})


def test_removed_items_leave_no_nodes_behind() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("1", A, "x")
    queue.add("1", B, "x")
    queue.add("2", A, "x")
    queue.remove("1")
    assert "1" not in queue
    assert emptied(queue) == ["2"]
    with pytest.raises(KeyError):
        queue.remove("1")


def test_skipped_kind_has_no_turn_and_keeps_its_place() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, client, kind in (("1", A, "x"), ("2", A, "y"), ("3", B, "x")):
        queue.add(item, client, kind)
    assert queue.first({"x"}) == "2"
    assert queue.take({"x"}) == "2"
    assert queue.first({"x"}) is None
    with pytest.raises(LookupError):
        queue.take({"x"})
    assert emptied(queue) == ["3", "1"], "the client was served a moment ago"


@given(st.lists(PATHS | st.sampled_from(["", "x", "yz"]), max_size=60))
def test_order_equals_that_of_a_naive_queue(steps: list[Path | str]) -> None:
    queue: FairQueue[int] = FairQueue()
    naive = Naive()
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            queue.add(number, step[:2], step[2])
            naive.add(number, step)
        elif queue.first(step) is not None:
            assert queue.take(step) == naive.take(step)
    while queue:
        assert queue.take() == naive.take()
    assert not naive.waiting


@given(st.lists(PATHS, max_size=30), PATHS)
def test_ahead_of_new_is_an_upper_bound(places: list[Path], new: Path) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, place in enumerate(places):
        queue.add(number, place[:2], place[2])
    told = queue.ahead_of_new(new[:2], new[2])
    queue.add(-1, new[:2], new[2])
    order = []
    while -1 in queue:
        order.append(queue.take())
    assert len(order) - 1 <= told <= len(places)


@given(st.lists(st.integers(1, 200), max_size=6), st.integers(0, 200))
def test_ahead_of_new_is_exact_up_to_64_rounds_and_too_high_beyond(others: list[int], own: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, count in {**{str(number): count for number, count in enumerate(others)}, "own": own}.items():
        for number in range(count):
            queue.add((client, number), (client,), "x")
    exact = own + sum(min(count, own + 1) for count in others)
    told = queue.ahead_of_new(("own",), "x")
    assert exact <= told <= own + sum(others)
    if own < 64:
        assert told == exact


@given(st.lists(PATHS, min_size=1, max_size=40))
def test_each_client_is_served_once_a_round(places: list[Path]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, place in enumerate(places):
        queue.add(number, place[:2], place[2])
    left = [place[0] for place in places]
    last_served: dict[str, int] = {}
    for step in range(len(places)):
        client = places[queue.take()][0]
        for other in set(left) - {client}:
            assert last_served.get(other, -1) >= last_served.get(client, -1) or client not in last_served
        last_served[client] = step
        left.remove(client)
    assert not left
    assert not queue


class Unwalkable(dict[str, object]):
    """Clients of whom none is found but by name."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("all clients were iterated")

    items = values = keys = __iter__


def test_skipped_clients_are_not_iterated() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(1_000):
        queue.add(number, (str(number), ""), "hangs")
    queue.add(-1, ("last", ""), "x")
    queue._root.children = Unwalkable(queue._root.children)  # type: ignore[assignment]
    assert queue._root.next({"hangs"}) == ("last", queue._root.children["last"])
    assert queue.take({"hangs"}) == -1
    assert queue.first({"hangs"}) is None


class Compared:
    """Counts how often it is compared with another."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return self is other

    def __hash__(self) -> int:
        return id(self)


def test_removal_out_of_turn_searches_no_queue() -> None:
    queue: FairQueue[Compared] = FairQueue()
    items = [Compared() for _ in range(1_000)]
    for item in items:
        queue.add(item, A, "x")
    Compared.count = 0
    for item in items[::-1]:
        queue.remove(item)
    assert not queue
    assert Compared.count < len(items), "next to none, were it not for hash collisions"
