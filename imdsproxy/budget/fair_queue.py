"""A queue in which clients take turns, and of one client the things it asks for.

A client with a thousand places in it delays another's only place by one turn. What several clients wait for stands in
the queue of each of them and leaves all at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by client and kind, first come first served only within one kind of one client."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[str, deque[Item]]] = OrderedDict()
        self._places: dict[Item, list[tuple[str, str]]] = {}

    def add(self, item: Item, client: str, kind: str) -> None:
        """Let an item wait at the end of a client's queue for this kind, where it does not wait already."""
        places = self._places.setdefault(item, [])
        if (client, kind) not in places:
            places.append((client, kind))
            self._clients.setdefault(client, OrderedDict()).setdefault(kind, deque()).append(item)

    def first(self) -> Item:
        """Give the item whose turn it is; LookupError if there is none."""
        if not self._clients:
            raise LookupError("nobody waits")
        kinds = next(iter(self._clients.values()))
        return next(iter(kinds.values()))[0]

    def take(self) -> Item:
        """Take out the item whose turn it is; in the next round its client is last, and its kind its client's last."""
        client, kinds = next(iter(self._clients.items()))
        kind, items = next(iter(kinds.items()))
        item = items[0]
        kinds.move_to_end(kind)
        self._clients.move_to_end(client)
        self.remove(item)
        return item

    def remove(self, item: Item) -> None:
        """Take an item out, wherever it waits; KeyError if it does not."""
        for client, kind in self._places.pop(item):
            kinds = self._clients[client]
            kinds[kind].remove(item)
            if not kinds[kind]:
                del kinds[kind]
            if not kinds:
                del self._clients[client]

    def ahead_of_new(self, client: str, kind: str) -> int:
        """Count those who would get their turn before a new item, at the most.

        The new one is its client's (n + 1)th to be served, and every other client is served n + 1 times before.
        """
        kinds = self._clients.get(client, OrderedDict[str, deque[Item]]())
        own = len(kinds.get(kind, ()))
        own += sum(min(len(items), own + 1) for name, items in kinds.items() if name != kind)
        others = (self.waiting(name) for name in self._clients if name != client)
        # What stands in several queues was counted in each.
        return min(len(self), own + sum(min(waiting, own + 1) for waiting in others))

    def waiting(self, client: str) -> int:
        """Count what waits for a client."""
        return sum(map(len, self._clients.get(client, {}).values()))

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def __len__(self) -> int:
        return len(self._places)
