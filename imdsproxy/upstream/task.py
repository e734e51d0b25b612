"""What a flight is to do, whom it asks, and what it brings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from imdsproxy.budget.limiter import Ticket
from imdsproxy.policy import Cache, Forward
from imdsproxy.protocol.failures import Verdict
from imdsproxy.protocol.messages import Failure, Headers, Request, Response


class Sender(Protocol):
    """What is needed of an upstream."""

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Send one request and give the whole answer, or why there is none."""
        ...


@dataclass(frozen=True, slots=True)
class FetchTask:
    """What a flight is to do."""

    request: Request
    decision: Forward | Cache
    client: str = ""
    """For whom; clients take turns where they have to wait."""
    shared: bool = False
    """Its answer goes to every client that asks meanwhile, though it is not kept."""

    @property
    def once(self) -> bool:
        """It is sent one time only, whatever comes of it."""
        return isinstance(self.decision, Forward) and self.decision.once

    @property
    def adds_metadata(self) -> bool:
        """IMDS gets it with `Metadata: true`."""
        return isinstance(self.decision, Cache) or self.decision.add_metadata

    def ticket(self, *, background: bool = False, max_wait: float = math.inf) -> Ticket:
        """Give it a place of its own in the queue for a token."""
        slow = self.decision.slow
        return Ticket(self.client, self.decision.endpoint, background=background, slow=slow, max_wait=max_wait)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The last upstream attempt of a fetch, judged, and when its request was sent."""

    verdict: Verdict
    sent_at: float
