"""What is known of IMDS's health, and who may ask while it is away.

While IMDS is being updated it answers 410 to everything, for up to 70 seconds. Then one request at a time
feels for its return and all others wait for that one, rather than each spending tokens on the same answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from imdsproxy.protocol.cache_status import proxy_detail
from imdsproxy.protocol.failures import Verdict
from imdsproxy.protocol.messages import Response

_GONE = 410
_TOO_MANY = 429
# What failed longer ago says nothing about now: an update of IMDS takes 70 seconds at the most.
_NEWS = 70.0


class Change(Enum):
    """What an answer changed about IMDS's health; worth one line in the log."""

    FAILED = "failed"
    RECOVERED = "recovered"


@dataclass(slots=True)
class Health:
    """IMDS's health as its last answer showed it. Whoever asks is known by an object of its own."""

    failing: bool = False
    """IMDS's last answer was a failure."""
    failed_at: float = -math.inf
    gone: Verdict | None = None
    """The verdict on the 410 that is passed on to every client while it lasts."""
    answered: bool = False
    """IMDS has at some time answered, and not with a failure."""
    _feeling: object | None = None

    def fails(self, now: float) -> bool:
        """Whether IMDS failed just now, so that asking it first would most likely be for nothing."""
        return self.failing and now - self.failed_at < _NEWS

    def may_ask(self, who: object) -> bool:
        """Whether `who` may send now. While IMDS is gone, the first that asks becomes the one that feels."""
        if self.gone is None:
            return True
        if self._feeling is None:
            self._feeling = who
        return self._feeling is who

    def learn(self, who: object, verdict: Verdict, now: float) -> Change | None:
        """Take in the verdict on what IMDS answered to `who`, at the monotonic moment `now`."""
        result, failed = verdict.result, verdict.failed
        if isinstance(result, Response):
            # A proxy that passes a 410 on has waited for IMDS's return itself.
            if result.status == _GONE and proxy_detail(result) is None:
                self.gone = verdict
                if self._feeling is None:
                    self._feeling = who
            else:
                self.gone = self._feeling = None
            self.answered = self.answered or not failed
            if result.status == _TOO_MANY and proxy_detail(result) is not None:
                return None  # that proxy has no token to spare, which says nothing of IMDS
        change = None
        if failed != self.failing:
            change = Change.FAILED if failed else Change.RECOVERED
        self.failing = failed
        if failed:
            self.failed_at = now
        return change

    def leave(self, who: object) -> bool:
        """Let another feel for IMDS's return, as `who` asks no more; says whether it was the one that did."""
        felt = self._feeling is who
        if felt:
            self._feeling = None
        return felt
