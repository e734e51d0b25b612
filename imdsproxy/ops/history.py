"""What happened since the start, in tables of a fixed size: the part of the status that no other room remembers.

Counts of requests are read from the metrics once a second at most, so that a hit costs nothing more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from imdsproxy.ops.attribution import Attribution
from imdsproxy.ops.client_tallies import ClientTallies
from imdsproxy.ops.counts import Timeline
from imdsproxy.ops.imds_words import LONGEST_WORDS, words_of
from imdsproxy.ops.pending_events import pending_by_type
from imdsproxy.ops.token_names import TokenName, token_name
from imdsproxy.protocol.peer import UNKNOWN, Peer, describe
from imdsproxy.records import UpstreamAttempt

SENT, REFUSED = "sent", "refused"
"""The words of `History.budget`."""
PERIOD, PERIODS = 15.0, 60
"""The length of a period of the charts in seconds, and how many there are: fifteen minutes."""

_HOUR = 3600.0
_SECOND = 1.0
# Clients are to ask once a second. The value of a gauge that is no longer renewed would be taken for the present.
_EVENTS_ARE_NEWS = 300.0
_MOST_TOKENS = 64
_LONGEST_TOKEN = 24 * _HOUR
_MOST_CLIENTS = 64
RECALLED = "recalled"
NO_ANSWER_FROM_IMDS = frozenset({RECALLED, "loop", "descriptors"})
"""Statuses of attempts that say nothing about IMDS."""
_STATES = {"410": "updating", "429": "throttling"}
OWN_REQUESTS = "the proxy itself"


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A failure, in words for people."""

    at: float
    """Monotonic seconds."""
    status: str
    words: str


@dataclass(frozen=True, slots=True)
class TokenFailure:
    """The failure of the latest request for a token."""

    name: TokenName
    failure: FailedAttempt


class History:
    """Everything that is counted over time. It learns from `UpstreamAttempt` and from the metrics' counts."""

    def __init__(self, totals: Callable[[], Mapping[str, int]] = dict, by_client: ClientTallies | None = None) -> None:
        """Make an empty history.

        Args:
            totals: Returns the number of answers since the start, by outcome.
            by_client: Counts what each client does, for metrics; None if nothing is counted.
        """
        self._by_client = by_client or ClientTallies(0)
        self._began: float | None = None
        self.outcomes = Timeline(PERIOD, PERIODS)
        self.budget = Timeline(PERIOD, PERIODS)
        self.statuses = Timeline(_HOUR / 60, 60)
        self.clients = Attribution(_MOST_CLIENTS)
        self.sent = 0
        """Requests sent to IMDS."""
        self.refused: dict[str, int] = {}
        """Requests refused because no permit was free in time, by class of the budget."""
        self.state = "unknown"
        """`unknown`, `answering`, `updating` (410), `throttling` (429) or `failing`."""
        self._state_since: float | None = None
        self.last_success: float | None = None
        self.last_failure: FailedAttempt | None = None
        self.pending_events: Mapping[str, int] = {}
        """Scheduled events by type, in the latest answer."""
        self.events_at: float | None = None
        """When that answer came; None if none has."""
        self._events_read: int | None = None
        self._totals = totals
        self._counted: dict[str, int] = {}
        self._counted_at = 0.0
        self._tokens: OrderedDict[str, TokenFailure] = OrderedDict()
        self.renewal_failures: OrderedDict[TokenName, int] = OrderedDict()
        """Failed requests for each token that IMDS has issued before, since the start."""

    def start(self, now: float) -> float:
        """Begin at `now` unless it has begun, and return when it began."""
        if self._began is None:
            self._began = self._counted_at = now
        return self._began

    def state_since(self, now: float) -> float:
        """Return since when IMDS has been in its state."""
        return self.start(now) if self._state_since is None else self._state_since

    def count_answers(self, now: float) -> None:
        """Add the answers since the last call to the timeline, unless that was less than a second ago."""
        if now - self._counted_at >= _SECOND:
            self.count_all_answers(now)

    def count_all_answers(self, now: float) -> None:
        """Add the answers since the last call to the timeline.

        They belong to the period of that call, because the first answer after a pause makes the next call.
        """
        self.start(now)
        totals = dict(self._totals())
        for outcome, count in totals.items():
            new = count - self._counted.get(outcome, 0)
            if new > 0:
                self.outcomes.add(outcome, self._counted_at, new)
        self._counted, self._counted_at = totals, now

    def answers(self) -> dict[str, int]:
        """Return the number of answers since the start, by outcome."""
        return dict(self._totals())

    def observe_attempt(self, attempt: UpstreamAttempt, now: float) -> None:
        """Learn from an upstream attempt."""
        self.start(now)
        if attempt.status is None:
            budget = attempt.budget.value
            self.refused[budget] = self.refused.get(budget, 0) + 1
            self.budget.add(REFUSED, now)
            return
        self.sent += 1
        self.budget.add(SENT, now)
        self.statuses.add(attempt.status, now)
        self.clients.add_sent(client_name(attempt.client))
        self._by_client.add(attempt.client, sent=1)
        if attempt.status not in NO_ANSWER_FROM_IMDS:
            self._learn_state(attempt, attempt.status, now)
        if attempt.endpoint == "scheduledevents" and attempt.response is not None and attempt.response.status == 200:
            self._learn_events(attempt.response.body, now)
        if attempt.endpoint == "token" and attempt.status != RECALLED:
            self._learn_token(attempt, attempt.status, now)

    def count_request(self, client: Peer, *, refused: bool) -> None:
        """Count a request that no fresh hit answered for its client."""
        name = client_name(client)
        self.clients.add_request(name)
        if refused:
            self.clients.add_refused(name)
        self._by_client.add(client, requests=1, refused=int(refused))

    def current_events(self, now: float) -> Mapping[str, int] | None:
        """Return the pending scheduled events by type, or None if no answer in the last minutes says so."""
        return self.pending_events if self.events_at is not None and now - self.events_at < _EVENTS_ARE_NEWS else None

    def token_failures(self) -> Mapping[str, TokenFailure]:
        """Return the tokens whose latest request failed, by key."""
        return self._tokens

    def failing_renewals(self, now: float) -> frozenset[TokenName]:
        """Return the tokens that IMDS has issued before, and whose latest request failed within the last day.

        No token lives longer than a day, so after that no client can still rely on it.
        """
        return frozenset(
            failed.name
            for failed in self._tokens.values()
            if failed.name in self.renewal_failures and now - failed.failure.at < _LONGEST_TOKEN
        )

    def _learn_state(self, attempt: UpstreamAttempt, status: str, now: float) -> None:
        if attempt.failure is None:
            state = "answering"
            self.last_success = now
        else:
            state = _STATES.get(status, "failing")
            self.last_failure = FailedAttempt(now, status, attempt.failure[:LONGEST_WORDS])
        if state != self.state:
            self.state, self._state_since = state, now

    def _learn_events(self, body: bytes, now: float) -> None:
        if hash(body) != self._events_read:  # clients ask every second, and the answer rarely changes
            pending = pending_by_type(body)
            if pending is None:  # such as the answer to an approval
                return
            self._events_read = hash(body)
            self.pending_events = pending
        self.events_at = now

    def _learn_token(self, attempt: UpstreamAttempt, status: str, now: float) -> None:
        if attempt.target is None:
            return
        name = token_name(attempt.target)
        key = name.key
        self._tokens.pop(key, None)
        if status == "200":
            self.renewal_failures.setdefault(name, 0)
            self.renewal_failures.move_to_end(name)
            if len(self.renewal_failures) > _MOST_TOKENS:
                self.renewal_failures.popitem(last=False)
        else:
            if name in self.renewal_failures:
                self.renewal_failures[name] += 1
            self._tokens[key] = TokenFailure(name, FailedAttempt(now, status, words_of(attempt)))
        while len(self._tokens) > _MOST_TOKENS:
            self._tokens.popitem(last=False)


@lru_cache(maxsize=_MOST_CLIENTS)
def client_name(peer: Peer) -> str:
    """Return the name of a client in the list of those that spent most. Its program is left out, because it is long."""
    if peer == UNKNOWN:
        return OWN_REQUESTS
    name = describe(peer._replace(executable=None))
    return "unknown" if name == "-" else name[:64]
