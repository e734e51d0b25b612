"""IMDS fails, is being updated, or throttles: the beginning and the end of each.

A failure to reach IMDS concerns all endpoints, and any answer without a failure ends it. Other failures concern one
endpoint, and only an answer at that endpoint ends them, because IMDS's sources fail one by one. While all endpoints
fail, no endpoint has an episode of its own.

A 4xx for a token is not a trouble of IMDS but of the token (`token_troubles`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from imdsproxy.ops.episodes import Ended, Episode, Event, seconds
from imdsproxy.ops.history import NO_ANSWER_FROM_IMDS
from imdsproxy.ops.imds_words import words_of
from imdsproxy.protocol.cache_status import proxy_detail
from imdsproxy.protocol.messages import FailureKind
from imdsproxy.records import UpstreamAttempt

ALL = "all"
"""The word for all endpoints."""
ALLOWED = 5
"""Requests a second that IMDS serves to a VM (Microsoft's IMDS page, "Rate limiting")."""
THROTTLING_SETTLES = 10.0
"""Seconds without a 429 before throttling is over, because IMDS serves some requests of a VM that it throttles."""

_OF_ALL = frozenset(kind.value for kind in (FailureKind.UNREACHABLE, FailureKind.SILENT, FailureKind.RESET))
_UPDATING, _THROTTLED = "410", "429"
_SECOND = 1.0


class ImdsTroubles:
    """What is wrong with IMDS."""

    def __init__(self) -> None:
        self._updating = Episode()
        self._throttling = Episode(THROTTLING_SETTLES)
        self._failing: dict[str, Episode] = {}
        self._because: dict[str, str] = {}
        self._sent: deque[float] = deque(maxlen=64)

    def observe(self, attempt: UpstreamAttempt, now: float) -> Iterator[Event]:
        """Learn from an upstream attempt, and yield what begins with it."""
        if attempt.status is None or attempt.status in NO_ANSWER_FROM_IMDS:
            return
        self._sent.append(now)
        if attempt.failure is None:
            self._answered(attempt.endpoint, now)
        elif attempt.status == _THROTTLED:
            # A proxy's 429 says that this proxy's own clients ask too much, and nothing about IMDS.
            if attempt.response is None or proxy_detail(attempt.response) is None:
                yield from self._throttled(attempt, now)
        elif attempt.status == _UPDATING:
            if self._updating.trouble(now):
                message = "IMDS is being updated and answers 410; stored answers are served within their stale bound"
                yield Event(message, {"endpoint": attempt.endpoint})
        elif not _is_of_token(attempt):
            yield from self._failed(attempt, attempt.status, now)

    def settle(self, now: float) -> Iterator[Event]:
        """Yield what ends now."""
        ended = self._updating.end(now)
        if ended is not None:
            yield Event("IMDS answers again after its update", _figures(ended), over=True)
        ended = self._throttling.end(now)
        if ended is not None:
            yield Event("IMDS throttles no longer", _figures(ended), over=True)
        for endpoint, episode in self._failing.items():
            ended = episode.end(now)
            if ended is not None:
                message = "IMDS is no longer asked" if ended.forgotten else "IMDS answers again"
                fields = {"endpoint": endpoint, **_figures(ended), "because": self._because[endpoint]}
                yield Event(message, fields, over=True)

    @property
    def due(self) -> float:
        """The moment of the next end if nothing shows until then."""
        return min(each.due for each in (self._updating, self._throttling, *self._failing.values()))

    def _answered(self, endpoint: str, now: float) -> None:
        self._updating.good(now)
        self._throttling.good(now)
        for scope in (endpoint, ALL):
            if scope in self._failing:
                self._failing[scope].good(now)

    def _throttled(self, attempt: UpstreamAttempt, now: float) -> Iterator[Event]:
        if not self._throttling.trouble(now):
            return
        own = sum(now - at < _SECOND for at in self._sent)
        cause = (
            "another program on this VM spends its requests, or another proxy does not share IMDSPROXY_BUDGET_FILE"
            if own <= ALLOWED
            else "this proxy alone sends more than IMDS allows; lower IMDSPROXY_BUDGET_REQUESTS"
        )
        fields = {
            "endpoint": attempt.endpoint,
            "sent_in_last_second": own,
            "because": cause,
            "imds": words_of(attempt),
        }
        yield Event("IMDS throttles this VM and answers 429", fields)

    def _failed(self, attempt: UpstreamAttempt, status: str, now: float) -> Iterator[Event]:
        of_all = self._failing.setdefault(ALL, Episode())
        scope = ALL if status in _OF_ALL or of_all.under_way else attempt.endpoint
        self._because[scope] = words_of(attempt)
        if self._failing.setdefault(scope, Episode()).trouble(now):
            message = "IMDS fails; stored answers are served within their stale bound"
            yield Event(message, {"endpoint": scope, "status": status, "because": self._because[scope]})


def _is_of_token(attempt: UpstreamAttempt) -> bool:
    return attempt.endpoint == "token" and attempt.response is not None and 400 <= attempt.response.status < 500


def _figures(ended: Ended) -> dict[str, object]:
    return {"seconds": seconds(ended.seconds), "failures": ended.count}
