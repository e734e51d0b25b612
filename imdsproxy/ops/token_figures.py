"""The access tokens in use, for the metrics: how long they live, and whether their renewal fails.

A token is in use while it is fresh, or while the latest request for it has failed. A stale token that no client has
requested is left to expire, and its age means nothing. A token that IMDS never issued is not listed either, because
its audience is a client's word only.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imdsproxy.cache.freshness import Entry
from imdsproxy.cache.store import Slot
from imdsproxy.ops.history import History
from imdsproxy.ops.token_names import TokenName, token_name
from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.target import read_target

MOST_TOKENS = 50
"""Tokens that are listed: those that expire first."""


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """One token in use."""

    name: TokenName
    remaining: float
    """The remaining life in seconds; 0 if none is cached any more."""
    failing: bool
    """Whether the latest request for it has failed."""
    failures: int
    """Requests to renew it that have failed, since the start."""


def named_tokens(slots: Iterable[tuple[Slot, Entry]]) -> Iterator[tuple[float, TokenName, Entry]]:
    """Yield the expiry of each stored token, in monotonic seconds, with its name and entry."""
    for slot, entry in slots:
        if entry.expires_at is not None:
            target = read_target(slot.key.encode("ascii"))
            if not isinstance(target, Refusal):
                yield entry.expires_at, token_name(target), entry


def tokens_in_use(slots: Iterable[tuple[Slot, Entry]], history: History, now: float) -> list[TokenFigures]:
    """Return the tokens in use, those that expire first at the front. Entries of one name count as the newest."""
    failing = history.failing_renewals(now)
    expiries: dict[TokenName, float] = dict.fromkeys(failing, now)
    for expires_at, name, entry in named_tokens(slots):
        if now < entry.fresh_until or name in failing:
            expiries[name] = max(expires_at, expiries.get(name, now))
    first = heapq.nsmallest(MOST_TOKENS, expiries.items(), key=lambda item: (item[1], item[0]))
    return [
        TokenFigures(name, max(0.0, expires_at - now), name in failing, history.renewal_failures.get(name, 0))
        for name, expires_at in first
    ]
