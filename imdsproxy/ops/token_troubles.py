"""An access token cannot be renewed or obtained: since when, why, and how long the cached one still lives.

A refusal of IMDS, such as a 403, begins an episode at once. A failure of IMDS begins one only if it outlasts
`PATIENCE`, because `imds_troubles` reports it already and retries take that long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from imdsproxy.ops.episodes import Episode, Event, seconds
from imdsproxy.ops.history import NO_ANSWER_FROM_IMDS
from imdsproxy.ops.imds_words import words_of
from imdsproxy.ops.token_names import TokenName, token_name
from imdsproxy.records import UpstreamAttempt

PATIENCE = 70.0
"""Seconds. IMDS may be down for as long during an update."""
MOST = 64
"""Tokens that are followed."""
MOST_NEVER_HELD = 8
"""Tokens that were never obtained and whose failure is reported at the same time. Any client can ask for such a token,
so without a limit clients could fill the log."""


@dataclass(slots=True)
class _Token:
    name: TokenName
    episode: Episode = field(default_factory=Episode)
    held: bool = False
    """Whether it was ever obtained."""
    renewal: bool = False
    """Whether it had been obtained when the episode began."""
    failed_since: float | None = None
    because: str = ""


class TokenTroubles:
    """The tokens that clients ask for."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, _Token] = OrderedDict()

    def observe(self, attempt: UpstreamAttempt, life: float | None, now: float) -> Iterator[Event]:
        """Learn from an upstream attempt, and yield what begins with it.

        Args:
            attempt: The attempt, for whatever endpoint.
            life: The remaining life of the cached token, in seconds; None if none is cached.
            now: The current time.
        """
        status = attempt.status
        if attempt.endpoint != "token" or attempt.target is None or status is None or status in NO_ANSWER_FROM_IMDS:
            return
        token = self._find(token_name(attempt.target))
        if token is None:
            return
        if status == "200" and attempt.failure is None:
            token.held, token.failed_since = True, None
            token.episode.good(now)
            return
        token.held = token.held or life is not None
        token.because = words_of(attempt)
        if token.failed_since is None:
            token.failed_since = now
        if not token.episode.under_way and not self._counts(token, attempt, now):
            return
        if token.episode.trouble(now):
            token.renewal = token.held
            what = "renewed" if token.renewal else "obtained"
            fields: dict[str, object] = {**_named(token), "status": status, "because": token.because}
            if life is not None:
                fields["expires_in"] = int(life)
            yield Event(f"access token cannot be {what}", fields)

    def settle(self, now: float) -> Iterator[Event]:
        """Yield the events of troubles that end now."""
        for token in self._tokens.values():
            ended = token.episode.end(now)
            if ended is not None:
                what = (
                    "is no longer requested" if ended.forgotten else "is renewed again" if token.renewal else "obtained"
                )
                fields = {
                    **_named(token),
                    "seconds": seconds(ended.seconds),
                    "failures": ended.count,
                    "because": token.because,
                }
                yield Event(f"access token {what}", fields, over=True)

    @property
    def due(self) -> float:
        """The moment of the next end if nothing shows until then."""
        return min((token.episode.due for token in self._tokens.values()), default=float("inf"))

    def _find(self, name: TokenName) -> _Token | None:
        """Return the token of this name. The one not asked for the longest makes room, unless it is in trouble."""
        token = self._tokens.get(name.key)
        if token is None:
            if len(self._tokens) >= MOST:
                idle = next((key for key, other in self._tokens.items() if not other.episode.under_way), None)
                if idle is None:
                    return None
                del self._tokens[idle]
            token = self._tokens[name.key] = _Token(name)
        self._tokens.move_to_end(name.key)
        return token

    def _counts(self, token: _Token, attempt: UpstreamAttempt, now: float) -> bool:
        """Return whether a failure begins an episode."""
        refused = attempt.response is not None and 400 <= attempt.response.status < 500
        general = attempt.status in {"410", "429"} or not refused
        if general and token.failed_since is not None and now - token.failed_since < PATIENCE:
            return False
        others = (other for other in self._tokens.values() if other.episode.under_way and not other.held)
        return token.held or sum(1 for _ in others) < MOST_NEVER_HELD


def _named(token: _Token) -> dict[str, object]:
    return {"audience": token.name.audience, "identity": token.name.identity}
