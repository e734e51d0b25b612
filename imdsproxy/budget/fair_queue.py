"""A queue in which clients take turns, and within one client the kinds of its requests.

The queue is a tree. Its upper levels are those of a client's turn (`budget.turns`); its lowest level is the kind of a
request, which is the endpoint. The children of a node take turns. A client with a thousand items therefore delays the
only item of another client by one turn. An item for which several clients wait is in the queue of each of them, and
leaves all of these queues at once.

A client whose first item of a kind arrives comes last among the clients that wait for that kind.

The time to add or remove an item, or to find the next one, does not depend on the number of items.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from itertools import count
from typing import Generic, TypeVar

from imdsproxy.budget.turns import Turn

Item = TypeVar("Item")

_EXACT_ROUNDS = 64
"""Rounds up to which `before_own` is exact; for more rounds it overestimates."""


class _Node(Generic[Item]):
    """A node of the tree. A leaf has items, in order of arrival; any other node has children, which take turns."""

    __slots__ = ("children", "items", "order", "served", "waiting", "with_more")

    def __init__(self, served: int = 0) -> None:
        self.children: dict[str, _Node[Item]] = {}
        self.order: dict[str, OrderedDict[str, _Node[Item]]] = {}
        """For each kind, the children with an item of it. The next to be served comes first."""
        self.items: dict[Item, None] = {}
        self.served = served
        """The sequence number of its last turn, or of its creation."""
        self.waiting = 0
        """The number of items in it and below it."""
        self.with_more: list[int] = []
        """At index n, the number of children with more than n items."""

    def has(self, kind: str) -> bool:
        """Return whether an item of this kind waits in it, or below it."""
        return bool(self.items) or kind in self.order

    def next(self, skipped: Container[str]) -> tuple[str, _Node[Item]] | None:
        """Return the child whose turn it is, with its name, or None. A child with only skipped kinds has no turn."""
        heads = (next(iter(order.items())) for kind, order in self.order.items() if kind not in skipped)
        return min(heads, key=lambda head: head[1].served, default=None)

    def before_own(self, name: str, own: int) -> int:
        """Return an upper bound of the items that other children have served before child `name` serves `own` + 1."""
        rounds, child = own + 1, self.children.get(name)
        own_waiting = 0 if child is None else child.waiting
        exact = min(rounds, _EXACT_ROUNDS)
        before = sum(self.with_more[:exact]) - min(own_waiting, exact)
        if rounds > exact < len(self.with_more):
            others = self.with_more[exact] - (own_waiting > exact)
            before += others * (rounds - exact)
        return min(before, self.waiting - own_waiting)


class FairQueue(Generic[Item]):
    """Items by turn and kind. Within one client and kind, items are served in order of arrival.

    An item has one kind. It may have the turns of several clients.
    """

    def __init__(self) -> None:
        self._root: _Node[Item] = _Node()
        self._places: dict[Item, dict[tuple[str, ...], None]] = {}
        self._numbers = count(1)
        self.kinds: dict[str, int] = {}
        """How many items of each kind wait."""

    def add(self, item: Item, turn: Turn, kind: str) -> None:
        """Append an item to a client's queue for this kind, unless it is there already."""
        path = (*turn, kind)
        places = self._places.setdefault(item, {})
        if path in places:
            return
        if not places:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
        places[path] = None
        node = self._root
        for name in path:
            node.waiting += 1
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = _Node(next(self._numbers))
            node.order.setdefault(kind, OrderedDict()).setdefault(name, child)
            if len(node.with_more) == child.waiting:
                node.with_more.append(0)
            node.with_more[child.waiting] += 1
            node = child
        node.waiting += 1
        node.items[item] = None

    def first(self, skipped: Container[str] = ()) -> Item | None:
        """Return the item whose turn it is, or None. Items of the skipped kinds have no turn."""
        node = self._root
        while (found := node.next(skipped)) is not None:
            _, node = found
        return next(iter(node.items), None)

    def take(self, skipped: Container[str] = ()) -> Item:
        """Remove and return the item whose turn it is; its client, and its kind, come last in the next round.

        Raises:
            LookupError: No item of a kind that is not skipped waits.
        """
        node = self._root
        while (found := node.next(skipped)) is not None:
            name, child = found
            child.served = next(self._numbers)
            for order in node.order.values():
                if name in order:
                    order.move_to_end(name)
            node = child
        if not node.items:
            raise LookupError("nothing waits")
        item = next(iter(node.items))
        self.remove(item)
        return item

    def remove(self, item: Item) -> None:
        """Remove an item from every queue that it is in. Raise KeyError if it is in none."""
        places = self._places.pop(item)
        kind = next(iter(places))[-1]
        self.kinds[kind] -= 1
        if not self.kinds[kind]:
            del self.kinds[kind]
        for path in places:
            nodes = [self._root]
            for name in path:
                nodes.append(nodes[-1].children[name])
            del nodes[-1].items[item]
            nodes[-1].waiting -= 1
            for name, node, child in zip(reversed(path), nodes[-2::-1], nodes[:0:-1], strict=True):
                node.waiting -= 1
                node.with_more[child.waiting] -= 1
                if not node.with_more[-1]:
                    node.with_more.pop()
                if not child.has(kind):
                    del node.order[kind][name]
                    if not node.order[kind]:
                        del node.order[kind]
                if not child.waiting:
                    del node.children[name]

    def ahead_of_new(self, turn: Turn, kind: str) -> int:
        """Return an upper bound of the items that would be served before a new one.

        If n items of the new item's own child come before it, every other child of that node is served n + 1 times
        before it, or as often as that child has items.
        """
        path = (*turn, kind)
        nodes: list[_Node[Item] | None] = [self._root]
        for name in path:
            above = nodes[-1]
            nodes.append(None if above is None else above.children.get(name))
        leaf = nodes.pop()
        ahead = 0 if leaf is None else leaf.waiting
        for name, node in zip(reversed(path), reversed(nodes), strict=True):
            if node is not None:
                ahead += node.before_own(name, ahead)
        return min(len(self), ahead)  # an item in several queues was counted in each of them

    def waiting(self, turn: Turn, kind: str | None = None) -> int:
        """Return how many items of a client wait; of one kind, or of all kinds if `kind` is None."""
        node = self._node(turn if kind is None else (*turn, kind))
        return node.waiting

    def _node(self, path: tuple[str, ...]) -> _Node[Item]:
        node = self._root
        for name in path:
            child = node.children.get(name)
            if child is None:
                return _Node()
            node = child
        return node

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def __len__(self) -> int:
        return len(self._places)
