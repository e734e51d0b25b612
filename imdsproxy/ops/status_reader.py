"""Read the status of a running proxy from its parts.

A reading takes a few milliseconds with a full cache, and any local client can ask for one. So a reading is repeated
within a second, and tables that grow with the cache are cut off.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from imdsproxy import __version__
from imdsproxy.cache.freshness import Entry
from imdsproxy.cache.store import Slot
from imdsproxy.clock import Clock
from imdsproxy.config import SettingInForce
from imdsproxy.ops.history import PERIOD, FailedAttempt, History, TokenFailure
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.snapshot import take_snapshot
from imdsproxy.ops.status import (
    SCHEMA,
    BudgetStatus,
    CacheStatus,
    ClientStatus,
    EntryStatus,
    EventsStatus,
    FailureStatus,
    HistoryStatus,
    ImdsStatus,
    Listening,
    ProxyStatus,
    RequestsStatus,
    Status,
    TokenStatus,
    as_json,
)
from imdsproxy.ops.token_figures import MOST_TOKENS, named_tokens
from imdsproxy.policy.decisions import Cache
from imdsproxy.protocol.messages import Refusal, Request, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import Outcome

MOST_ENTRIES = 100
"""Entries that are listed: those with the most hits."""
_MOST_CLIENTS = 10
_LONGEST_PATH = 200
_LONGEST_VERSION = 40
_REPEATED_FOR = 1.0


@dataclass(frozen=True, slots=True)
class About:
    """What the composition knows of the proxy, and the proxy does not."""

    upstream: str
    window: float
    """The window of the budget, in seconds."""
    settings: tuple[SettingInForce, ...] = ()
    """The settings that differ from their defaults."""


class StatusReader:
    """Reads the status of one proxy."""

    def __init__(self, proxy: Proxy, readiness: Readiness, history: History, clock: Clock, about: About) -> None:
        self.listeners: tuple[Listening, ...] = ()
        """Where the proxy listens. The server sets it; under another server it is unknown."""
        self._proxy = proxy
        self._readiness = readiness
        self._history = history
        self._clock = clock
        self._about = about
        self._written = b""
        self._written_at = -math.inf

    def json(self) -> bytes:
        """Return the status as JSON, at most a second old."""
        now = self._clock.monotonic()
        if not 0 <= now - self._written_at < _REPEATED_FOR:
            self._written, self._written_at = as_json(self.read()), now
        return self._written

    def read(self) -> Status:
        """Return the status at this moment."""
        history = self._history
        now = self._clock.monotonic()
        history.count_all_answers(now)
        snapshot = take_snapshot(self._proxy)
        obstacle = self._readiness.obstacle
        return Status(
            schema=SCHEMA,
            time=datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            proxy=ProxyStatus(
                version=__version__,
                pid=os.getpid(),
                uptime=now - history.start(now),
                ready=obstacle is None,
                obstacle=obstacle,
                upstream=self._about.upstream,
                chained=self._proxy.fetcher.chain.proxied,
                listeners=self.listeners,
                settings=self._about.settings,
                log_lines_dropped=snapshot.log_lines_dropped,
            ),
            imds=ImdsStatus(
                state=history.state,
                since=now - history.state_since(now),
                last_success=_ago(history.last_success, now),
                last_failure=_failure(history.last_failure, now),
                last_hour=history.statuses.totals(now),
            ),
            requests=self._requests(),
            budget=tuple(self._budget(now)),
            clients=tuple(ClientStatus(*use) for use in history.clients.top(_MOST_CLIENTS)),
            cache=self._cache(now),
            tokens=self._tokens(now),
            events=self._events(now),
            history=HistoryStatus(PERIOD, history.outcomes.rows(now), history.budget.rows(now)),
        )

    def _requests(self) -> RequestsStatus:
        counts = self._history.answers()
        sent = self._history.sent
        forwarded = sum(count for outcome, count in counts.items() if outcome != Outcome.REFUSED.value)
        return RequestsStatus(
            answered=sum(counts.values()), by_outcome=counts, sent_to_imds=sent, saved=max(0, forwarded - sent)
        )

    def _budget(self, now: float) -> Iterator[BudgetStatus]:
        seen: set[int] = set()
        for name, limiter in self._proxy.fetcher.limiters.items():
            if id(limiter) in seen:  # the classes share one budget
                continue
            seen.add(id(limiter))
            shared = [each.value for each, other in self._proxy.fetcher.limiters.items() if other is limiter]
            yield BudgetStatus(
                name=name.value,
                permits=limiter.budget.requests,
                window=self._about.window,
                free=limiter.budget.available(now),
                waiting=limiter.waiting,
                estimated_wait=limiter.estimated_wait(),
                refused=sum(self._history.refused.get(each, 0) for each in shared),
            )

    def _cache(self, now: float) -> CacheStatus:
        store = self._proxy.store
        used = heapq.nlargest(MOST_ENTRIES, store.slots(), key=lambda item: (item[0].uses.count, -item[0].size))
        return CacheStatus(
            entries=len(store),
            bytes=store.bytes,
            max_bytes=store.max_bytes,
            evictions=store.evictions,
            listed=tuple(self._entry(slot, entry, now) for slot, entry in used),
        )

    def _entry(self, slot: Slot, entry: Entry, now: float) -> EntryStatus:
        target = _target(slot)
        decision = None if target is None else self._proxy.policy.decide(Request("GET", target, metadata=True))
        versions = () if target is None else (value for name, value in target.parameters if name == "api-version")
        return EntryStatus(
            path="" if target is None else target.path[:_LONGEST_PATH],
            endpoint=decision.endpoint if isinstance(decision, Cache) else "none",
            api_version=next(iter(versions), "")[:_LONGEST_VERSION],
            status=entry.response.status,
            age=entry.age(now),
            fresh=entry.fresh_until - now,
            usable=entry.gone_at - now,
            bytes=slot.size,
            hits=slot.uses.count,
        )

    def _tokens(self, now: float) -> tuple[TokenStatus, ...]:
        """Return the cached tokens that expire first, before them those that the proxy could not get."""
        failures = dict(self._history.token_failures())
        cached = heapq.nsmallest(MOST_TOKENS, named_tokens(self._proxy.store.slots()), key=lambda item: item[0])
        listed = []
        for expires_at, name, entry in cached:
            failed = failures.pop(name.key, None)
            listed.append(
                TokenStatus(
                    audience=name.audience,
                    identity=name.identity,
                    expires=expires_at - now,
                    renewal=max(0.0, entry.fresh_until - now),
                    failure=None if failed is None else _failure(failed.failure, now),
                )
            )
        return (*_missing_tokens(failures.values(), now), *listed)

    def _events(self, now: float) -> EventsStatus | None:
        at = self._history.events_at
        return None if at is None else EventsStatus(now - at, self._history.pending_events)


def _missing_tokens(failures: Iterable[TokenFailure], now: float) -> Iterator[TokenStatus]:
    for failed in failures:
        yield TokenStatus(failed.name.audience, failed.name.identity, None, None, _failure(failed.failure, now))


def _target(slot: Slot) -> Target | None:
    target = read_target(slot.key.encode("ascii"))
    return None if isinstance(target, Refusal) else target


def _ago(moment: float | None, now: float) -> float | None:
    return None if moment is None else now - moment


def _failure(failed: FailedAttempt | None, now: float) -> FailureStatus | None:
    return None if failed is None else FailureStatus(now - failed.at, failed.status, failed.words)
