"""What happened to each request of each client, and which of it was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

CLOSED = "closed"
"""The proxy closed the connection without an answer."""
TIMEOUT = "no answer in time"
WRONG = "wrong answer"

ANSWERED = frozenset({"200"})
IN_TROUBLE = frozenset({"410", "429", "500", "502", "503", "504"})
"""Statuses that a client may get while IMDS fails, and until the proxy has seen that it is back."""
BUSY = frozenset({"200", "429", "503"})
"""A flood has more requests than the budget allows: the proxy refuses some, also if IMDS is well."""

EXPECTED: Mapping[str, frozenset[str]] = {
    "azure-identity": ANSWERED,
    "msal": ANSWERED,
    "curl": ANSWERED,
    "instance": ANSWERED,
    "token": ANSWERED,
    "scheduled events": ANSWERED | {"429"},
    "imdsproxy status": ANSWERED,
    "imdsproxy events": ANSWERED,
    "imdsproxy purge": ANSWERED,
    "imdsproxy events --watch": ANSWERED,
    "pipelining": ANSWERED,
    "slow heads": frozenset({"408", CLOSED}),
    "vanishing clients": frozenset({"left"}),
    "half-closed connections": BUSY,
    "distinct keys": BUSY,
    "distinct tokens": BUSY,
    "forged ids": BUSY,
    "refused requests": frozenset({"400", "403", "404", "405", "431", CLOSED}),
    "unread answers": frozenset({"left", CLOSED}),
    "idle connections": frozenset({"left", CLOSED}),
}
"""The outcomes of each client while IMDS is well; `IN_TROUBLE` adds to it for those that ask IMDS."""

_NEVER_ASK_IMDS = frozenset({"imdsproxy status", "imdsproxy purge", "slow heads", "refused requests"})


def is_expected(client: str, outcome: str, *, trouble: bool) -> bool:
    """Return whether a client may have this outcome.

    Args:
        client: A key of `EXPECTED`.
        outcome: A status, or one of the words of this module.
        trouble: Whether IMDS failed during the request or shortly before it.
    """
    if outcome in EXPECTED[client]:
        return True
    return trouble and client not in _NEVER_ASK_IMDS and outcome in IN_TROUBLE


@dataclass(slots=True)
class Ledger:
    """The outcomes of a run."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    unexpected: Counter[tuple[str, str]] = field(default_factory=Counter)
    started: Counter[str] = field(default_factory=Counter)
    details: dict[tuple[str, str], str] = field(default_factory=dict)
    """The first description of each unexpected outcome."""

    def start(self, client: str) -> None:
        """Count a request that has begun."""
        self.started[client] += 1

    def end(self, client: str, outcome: str, *, trouble: bool, detail: str = "") -> None:
        """Count the outcome of a request that has begun."""
        self.outcomes.setdefault(client, Counter())[outcome] += 1
        if not is_expected(client, outcome, trouble=trouble):
            self.unexpected[client, outcome] += 1
            self.details.setdefault((client, outcome), detail)

    def answered(self, client: str) -> int:
        """Return how many requests of a client have ended."""
        return self.outcomes.get(client, Counter()).total()
