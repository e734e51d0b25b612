"""What each of the most frequent clients has done, for metrics: a bounded number of names, which clients cannot choose.

A name is the outermost level of a client's turn: its user, its address or its network. A client multiplies neither by
more processes, connections or header fields. A pod counts for its namespace, because pods come and go.

The rules:

1. The first clients are listed, up to the limit. All others count as `OTHER`.
2. A client takes the place of the one that did least, once it has done twice as much. At most one does so in
   `REQUESTS_BETWEEN` requests, because each new name is a new series for as long as Prometheus keeps it.
3. A listed client counts from zero from then on. What was counted as `OTHER` stays there, so no counter ever falls.
"""

from __future__ import annotations

from typing import NamedTuple

from imdsproxy.budget.turns import turn_of
from imdsproxy.ops.counts import MostFrequent
from imdsproxy.protocol.peer import UNKNOWN, Peer

OTHER = "other"
OWN = "proxy"
"""The name of the proxy's own requests."""
REQUESTS_BETWEEN = 1000
_LONGEST_NAME = 80
_CANDIDATES = 4


class ClientCounts(NamedTuple):
    """What one client has done since it is listed."""

    requests: int = 0
    """Requests that no fast hit answered."""
    sent: int = 0
    """Requests to IMDS that it caused."""
    refused: int = 0
    """Refused requests, of the first number."""


class ClientTallies:
    """The counts of the most frequent clients."""

    def __init__(self, most: int) -> None:
        """Begin with no client. With 0 nothing is counted."""
        self.most = most
        self._counts: dict[str, ClientCounts] = {}
        self._other = ClientCounts()
        self._weights: dict[str, int] = {}
        self._candidates = MostFrequent(max(1, _CANDIDATES * most))
        self._since_change = 0

    def add(self, peer: Peer, *, requests: int = 0, sent: int = 0, refused: int = 0) -> None:
        """Count what a client did."""
        if not self.most:
            return
        name = label_of(peer)
        self._since_change += 1
        self._candidates.add(name)
        if name not in self._counts and not self._takes_place(name):
            self._other = _sum(self._other, requests, sent, refused)
            return
        self._weights[name] = self._weights.get(name, 0) + 1
        self._counts[name] = _sum(self._counts.get(name, ClientCounts()), requests, sent, refused)

    def counts(self) -> dict[str, ClientCounts]:
        """Return the counts by name; empty if nothing is counted."""
        return {**self._counts, OTHER: self._other} if self.most else {}

    def _takes_place(self, name: str) -> bool:
        """Return whether a client that is not listed gets a place now, and make it free."""
        if len(self._counts) < self.most:
            return True
        if self._since_change < REQUESTS_BETWEEN:
            return False
        least = min(self._weights, key=self._weights.__getitem__)
        if self._candidates.count(name) < 2 * max(self._weights[least], 1):
            return False
        del self._counts[least], self._weights[least]
        self._since_change = 0
        self._weights[name] = self._candidates.count(name)
        return True


def label_of(peer: Peer) -> str:
    """Return the name of a client in a metric."""
    if peer == UNKNOWN:
        return OWN
    if peer.user is not None:
        name = f"user {peer.user}" if peer.user_name is None else f"user {peer.user_name}"
    elif peer.pod is not None:
        name = f"namespace {peer.pod.namespace}"
    else:
        name = turn_of(peer)[0] or "unknown"
    return name[:_LONGEST_NAME]


def _sum(counts: ClientCounts, requests: int, sent: int, refused: int) -> ClientCounts:
    return ClientCounts(counts.requests + requests, counts.sent + sent, counts.refused + refused)
