"""The log lines while the file of a shared budget cannot be used, and the pauses between attempts at it."""

from __future__ import annotations

import logging
from random import SystemRandom

from imdsproxy.clock import Clock

logger = logging.getLogger(__name__)

_RANDOM = SystemRandom()
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
_REMINDER = 60.0


class Trouble:
    """How long the file has been unusable, and what was logged about it."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._logged_at: dict[str, float] = {}
        self._barred_since: float | None = None

    def begin(self) -> None:
        """Note that the file could not be used."""
        if self._barred_since is None:
            self._barred_since = self._clock.monotonic()

    def over(self) -> None:
        """Note that the file could be used."""
        self._barred_since = None

    @property
    def pause(self) -> float:
        """The seconds until the next attempt, which grow with the time that the file has been unusable."""
        barred_for = 0.0 if self._barred_since is None else self._clock.monotonic() - self._barred_since
        return _RANDOM.uniform(0.5, 1.5) * min(_LONGEST_PAUSE, _SHORTEST_PAUSE + barred_for / 10)

    def bar(self, why: str) -> None:
        """Note that the file could not be used, and log the reason."""
        self.begin()
        self.complain(why)

    def complain(self, what: str) -> None:
        """Log one line, and the same line at most once a minute."""
        now = self._clock.monotonic()
        self._logged_at = {line: at for line, at in self._logged_at.items() if now - at < _REMINDER}
        if what not in self._logged_at:
            self._logged_at[what] = now
            logger.warning("the shared budget %s", what, extra={"fields": {"file": self._path}})
