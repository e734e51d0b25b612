"""The task of a fetch, the interface of an upstream, and the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from imdsproxy.budget.fair_semaphore import Place
from imdsproxy.budget.limiter import Ticket
from imdsproxy.budget.shares import Recall
from imdsproxy.budget.turns import turn_of
from imdsproxy.policy.decisions import Cache, Forward
from imdsproxy.policy.endpoints import is_usual, share_of
from imdsproxy.protocol.failures import Verdict
from imdsproxy.protocol.messages import Failure, Headers, Request, Response
from imdsproxy.protocol.peer import UNKNOWN, Peer


class Sender(Protocol):
    """The part of an upstream client that a fetch uses."""

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Send one request, and return the complete answer, or why there is none.

        Args:
            method: The method.
            target: The request target, byte for byte.
            headers: The fields, without Host and Content-Length.
            body: The body.
            slow: Whether the answer may take minutes.
        """
        ...


@dataclass(frozen=True, slots=True)
class FetchTask:
    """The task of a fetch."""

    request: Request
    decision: Forward | Cache
    client: Peer = UNKNOWN
    """The client that started it."""
    shared: bool = False
    """Whether its answer serves all clients that wait for it, without being stored."""

    @property
    def once(self) -> bool:
        """Whether it is sent once only, and never retried."""
        return isinstance(self.decision, Forward) and self.decision.once

    @property
    def adds_metadata(self) -> bool:
        """Whether it is sent with `Metadata: true`."""
        return isinstance(self.decision, Cache) or self.decision.add_metadata

    def ticket(self, *, background: bool = False, max_wait: float = math.inf) -> Ticket:
        """Return a ticket for the queue before the budget.

        A request that is sent once, such as the approval of an event, has a share of its own. The other requests to
        its endpoint cannot use that share up.
        """
        share = share_of(self.request.target, self.decision.endpoint)
        return Ticket(
            self.client,
            f"{share} once" if self.once else share,
            background=background,
            slow=self.decision.slow,
            max_wait=max_wait,
            recall=None if self.once else Recall(),
        )

    def place(self, ticket: Ticket) -> Place:
        """Return the place that a slow request takes in the `FairSemaphore` before its permit."""
        return Place(turn_of(self.client), self.once or is_usual(self.request.target), ticket.recall or Recall())


@dataclass(frozen=True, slots=True)
class Fetched:
    """The verdict on the last upstream attempt of a fetch, and when its request was sent, in monotonic seconds."""

    verdict: Verdict
    sent_at: float
