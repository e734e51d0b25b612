"""What each client has cost: its requests, the requests to IMDS that it caused, and its refusals.

The table is bounded, because clients choose how many they are. A hit of the fast path does not look its client up, so
it is not counted here.
"""

from __future__ import annotations

from typing import NamedTuple

from imdsproxy.ops.counts import MostFrequent


class Use(NamedTuple):
    """What one client has done since it is listed."""

    name: str
    sent: int = 0
    """Requests to IMDS that it caused, each with a permit."""
    requests: int = 0
    """Its requests that no fresh hit answered, refused ones included."""
    refused: int = 0
    """Those of its requests that were refused."""


class Attribution:
    """The clients that did most. A new client takes the place of the one that did least, and counts from zero."""

    def __init__(self, most_clients: int = 64) -> None:
        self._uses: dict[str, Use] = {}
        self._listed = MostFrequent(most_clients)
        """Decides who is listed. It counts what a replaced client did for the new one, and `Use` does not."""

    def add_request(self, name: str) -> None:
        """Count a request of a client."""
        use = self._of(name)
        self._uses[name] = use._replace(requests=use.requests + 1)

    def add_sent(self, name: str) -> None:
        """Count a request to IMDS that a client caused."""
        use = self._of(name)
        self._uses[name] = use._replace(sent=use.sent + 1)

    def add_refused(self, name: str) -> None:
        """Count a refusal of a request that is counted already."""
        use = self._of(name)
        self._uses[name] = use._replace(refused=use.refused + 1)

    def top(self, count: int) -> tuple[Use, ...]:
        """Return the clients that caused the most requests to IMDS, then those that asked most."""
        ordered = sorted(self._uses.values(), key=lambda use: (-use.sent, -use.requests, -use.refused, use.name))
        return tuple(ordered[:count])

    def _of(self, name: str) -> Use:
        replaced = self._listed.add(name)
        if replaced is not None:
            del self._uses[replaced]
        return self._uses.setdefault(name, Use(name))
