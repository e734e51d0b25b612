"""The health of IMDS, and which fetch may send during a 410.

While IMDS is being updated it answers 410 to everything, for up to 70 seconds. One fetch at a time is then the probe.
All others wait for it, so that they spend no permits on the same answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from imdsproxy.protocol.cache_status import proxy_detail
from imdsproxy.protocol.failures import Verdict
from imdsproxy.protocol.messages import Response

_GONE = 410
_TOO_MANY = 429
# Seconds for which a failure predicts the next answer. An update of IMDS takes 70 seconds at most.
_NEWS = 70.0


@dataclass(slots=True)
class Health:
    """IMDS's health after its last answer. Each fetch is identified by an object of its own."""

    failing: bool = False
    """Whether IMDS's last answer was a failure."""
    failed_at: float = -math.inf
    gone: Verdict | None = None
    """The verdict on the current 410, which is passed on to every client; None if there is none."""
    answered: bool = False
    """Whether IMDS has ever answered without a failure."""
    _probe: object | None = None

    def fails(self, now: float) -> bool:
        """Return whether IMDS failed so recently that the next request will probably fail."""
        return self.failing and now - self.failed_at < _NEWS

    def may_ask(self, who: object) -> bool:
        """Return whether `who` may send now. During a 410, the first caller becomes the probe."""
        if self.gone is None:
            return True
        if self._probe is None:
            self._probe = who
        return self._probe is who

    def learn(self, who: object, verdict: Verdict, now: float) -> None:
        """Update the health.

        Args:
            who: The fetch that got the answer.
            verdict: The verdict on the answer.
            now: The current monotonic time, in seconds.
        """
        result, failed = verdict.result, verdict.failed
        if isinstance(result, Response):
            # A proxy that passes a 410 on has waited for IMDS itself.
            if result.status == _GONE and proxy_detail(result) is None:
                self.gone = verdict
                if self._probe is None:
                    self._probe = who
            else:
                self.gone = self._probe = None
            self.answered = self.answered or not failed
            if result.status == _TOO_MANY and proxy_detail(result) is not None:
                return  # that proxy has no permit, which says nothing about IMDS
        self.failing = failed
        if failed:
            self.failed_at = now

    def leave(self, who: object) -> bool:
        """Note that `who` sends no more, and return whether it was the probe. The next caller becomes the probe."""
        probed = self._probe is who
        if probed:
            self._probe = None
        return probed
