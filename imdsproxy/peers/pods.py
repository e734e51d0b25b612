"""Which pod of the node has an address: a table that follows the API server's list and watch of pods.

The rules:

1. An address belongs to the newest pod that is not finished and has it. Of two pods created in the same second neither
   has it, because nothing shows which of them got the address last.
2. A pod that is finished (phase Succeeded or Failed) or deleted has no address any more. A pod in the node's network
   (hostNetwork) has none of its own. A pod of another node is not in the table.
3. What an address belongs to depends on the pods that there are, and not on the order in which they became known. So
   the table after any changes equals the table of a list made at that moment.
4. A list replaces the table in one step. The table is never empty in between, and keeps nothing that the list lacks.
5. Without a sign of the API server for `held_for` seconds every address is unknown, because the node may have given an
   address to another pod meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from imdsproxy.protocol.host import plain
from imdsproxy.protocol.peer import Pod

HELD_FOR = 300.0
"""Seconds without a sign of the API server for which the table is used."""
MOST_PODS = 512
"""The number of pods with an address that a node may have. The kubelet's own limit is 110, and Azure's 250."""
MOST_LABELS = 32
LONGEST_LABEL = 320
"""The number of characters of a label's name or value. The API allows 317 and 63."""


class TooManyPodsError(Exception):
    """The API server lists more pods of one node than a node can have."""

    def __init__(self) -> None:
        super().__init__(f"the API server lists more than {MOST_PODS} pods of this node")


class ChangeKind(StrEnum):
    """The kinds of events of a watch that say something about pods."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    """Everything up to its version has been sent. It has no pod."""


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod as the API server describes it."""

    uid: str
    pod: Pod
    node: str
    created: str
    """The time of its creation in RFC 3339, in UTC and whole seconds, so that the order of texts is that of times."""
    addresses: tuple[str, ...] = ()
    host_addresses: tuple[str, ...] = ()
    """The addresses of its node."""
    host_network: bool = False
    finished: bool = False


class PodTable:
    """The pods of a node by address. The caller has the time."""

    def __init__(self, node: str, held_for: float = HELD_FOR) -> None:
        """Begin with every address unknown.

        Args:
            node: The name of the node.
            held_for: The seconds of rule 5.
        """
        self.node = node
        self._held_for = held_for
        self._heard: float | None = None
        self._states: dict[str, PodState] = {}
        self._by_address: dict[str, dict[str, PodState]] = {}
        self._owners: dict[str, Pod] = {}

    def __len__(self) -> int:
        return len(self._states)

    def replace(self, states: Iterable[PodState], now: float) -> None:
        """Take a list in place of all that was known. Raise TooManyPodsError, and change nothing, if it is too long."""
        kept = {state.uid: state for state in states if self._addresses(state)}
        if len(kept) > MOST_PODS:
            raise TooManyPodsError
        self._states, self._by_address, self._owners = {}, {}, {}
        for state in kept.values():
            self._add(state)
        self._heard = now

    def change(self, kind: ChangeKind, state: PodState | None, now: float) -> None:
        """Take an event of the watch. Raise TooManyPodsError, and leave its pod out, if there is no room for it."""
        self._heard = now
        if state is None or kind is ChangeKind.BOOKMARK:
            return
        self._remove(state.uid)
        if kind is ChangeKind.DELETED or not self._addresses(state):
            return
        if len(self._states) >= MOST_PODS:
            raise TooManyPodsError
        self._add(state)

    def heard(self, now: float) -> None:
        """Note that the API server has answered, and had nothing to say."""
        self._heard = now

    def known(self, now: float) -> bool:
        """Return whether the table can be used (rule 5)."""
        return self._heard is not None and now - self._heard < self._held_for

    def find(self, address: str, now: float) -> Pod | None:
        """Return the pod that has an address, or None if that is unknown."""
        if not self.known(now):
            return None
        owner = self._owners.get(address)
        if owner is None and ":" in address:  # an IPv6 address can be written in more than one way
            try:
                return self._owners.get(str(plain(address)))
            except ValueError:
                return None
        return owner

    def _addresses(self, state: PodState) -> set[str]:
        """Return the addresses by which a pod is known."""
        if state.finished or state.host_network or state.node != self.node:
            return set()
        return _parsed(state.addresses) - _parsed(state.host_addresses)

    def _add(self, state: PodState) -> None:
        self._states[state.uid] = state
        for address in self._addresses(state):
            self._by_address.setdefault(address, {})[state.uid] = state
            self._decide(address)

    def _remove(self, uid: str) -> None:
        state = self._states.pop(uid, None)
        if state is None:
            return
        for address in self._addresses(state):
            having = self._by_address[address]
            del having[uid]
            if not having:
                del self._by_address[address]
            self._decide(address)

    def _decide(self, address: str) -> None:
        """Note to whom an address belongs (rule 1). This is done here, because hits of the fast path call `find`."""
        self._owners.pop(address, None)
        candidates = self._by_address.get(address, {}).values()
        newest = max((state.created for state in candidates), default="")
        having = [state.pod for state in candidates if state.created == newest]
        if len(having) == 1:
            self._owners[address] = having[0]


def bounded_labels(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return labels in the order of their names, without those over the bounds of this module."""
    fitting = (pair for pair in sorted(labels.items()) if max(map(len, pair)) <= LONGEST_LABEL)
    return tuple(fitting)[:MOST_LABELS]


def _parsed(addresses: Iterable[str]) -> set[str]:
    """Return addresses in the form in which the kernel writes them."""
    found = set()
    for address in addresses:
        try:
            found.add(str(plain(address)))
        except ValueError:  # not an address; the API server checks them
            continue
    return found
