"""How many permits one endpoint may hold, so that an endpoint that hangs does not starve the others.

Half of the permits is an endpoint's share. The rules:

1. While a request to another endpoint waits, an endpoint gets no permit beyond its share.
2. While no other endpoint waits, it may have all permits, unless it has requests that cannot be recalled.
3. If another endpoint waits, and one with more than its share has been silent for `SILENCE` seconds, its newest
   requests beyond the share are recalled: they are ended, and their permits return one window later.
4. IMDS counts a request when it reads it. A recalled request that IMDS reads late is counted together with the request
   that was sent in its place. IMDS has certainly read a request if it has answered one that was sent later. Of the
   other requests only one is recalled at a time. The next one may be after IMDS has answered a request that was sent
   later.
5. After its requests were recalled, or ended without an answer, an endpoint keeps to its share until it answers
   promptly again, whether another endpoint waits or not. So only the first client behind a hanging endpoint waits.

With a budget of one permit there is no half: a request waits until the permit has returned. A request without an
endpoint has no such limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SILENCE = 1.0
"""Seconds without any answer after which an endpoint counts as hanging. A healthy IMDS answers sooner."""

_SOON = 0.05


@dataclass(slots=True, eq=False)
class Recall:
    """How to end one request before it is answered."""

    end: Callable[[], object] | None = None
    """Ends the request; None while it is not at IMDS."""

    def take_effect(self) -> bool:
        """End the request, and return True, unless it is not at IMDS."""
        if self.end is None:
            return False
        self.end()
        return True


@dataclass(slots=True, eq=False)
class _Loan:
    kind: str
    taken_at: float
    recall: Recall | None
    recalled: bool = False


class Shares:
    """The permits that are lent, by the kind of their request. All times are monotonic seconds.

    A kind is the endpoint of a request, or `""` for a request that has no limit here.
    """

    def __init__(self) -> None:
        self._loans: dict[int, _Loan] = {}
        self._held: dict[str, list[_Loan]] = {}
        self._answered_at: dict[str, float] = {}
        self._read_until = -math.inf
        """IMDS has answered a request that was sent at this moment, so it has read those that were sent before."""
        self._unread: float | None = None
        """When the last request was sent that was recalled although IMDS had perhaps not read it."""
        self._hanging: set[str] = set()

    def lend(self, holder: int, kind: str, now: float, recall: Recall | None) -> None:
        """Note that a permit was lent for this kind; without `recall` its request cannot be ended."""
        if kind:
            loan = self._loans[holder] = _Loan(kind, now, recall)
            self._held.setdefault(kind, []).append(loan)

    def end(self, holder: int, now: float, *, answered: bool) -> None:
        """Note that a permit's request is over, and whether its endpoint answered."""
        loan = self._forget(holder)
        if loan is None:
            return
        if answered:
            self._answered_at[loan.kind] = now
            self._read_until = max(self._read_until, loan.taken_at)
        if now - loan.taken_at >= SILENCE:
            if not answered:
                self._hanging.add(loan.kind)
        elif answered:
            self._hanging.discard(loan.kind)

    def forget(self, holder: int) -> None:
        """Note that a permit came back unused, which says nothing about its endpoint."""
        self._forget(holder)

    def full(self, share: int, waiting: Iterable[str], now: float) -> frozenset[str]:
        """Return the kinds that get no permit now.

        Args:
            share: The permits that are one endpoint's share.
            waiting: The kinds that wait.
            now: The current time.
        """
        beyond = {kind for kind, held in self._held.items() if len(held) >= share}
        if not beyond:
            return frozenset()
        others_wait = any(kind not in beyond for kind in waiting)
        return frozenset(
            kind
            for kind in beyond
            if others_wait
            or kind in self._hanging
            or now - self._heard_at(kind) >= SILENCE
            or any(loan.recall is None for loan in self._held[kind])
        )

    def recall(self, share: int, now: float) -> float:
        """Recall the requests of silent endpoints beyond their share. Return the moment at which to call this again.

        Call it only while a request waits whose endpoint is not full.
        """
        look_again = math.inf
        for kind, held in list(self._held.items()):
            excess = len(held) - share
            if excess <= 0:
                continue
            silent_at = self._heard_at(kind) + SILENCE
            if silent_at > now:
                look_again = min(look_again, silent_at)
                continue
            self._hanging.add(kind)
            excess -= sum(loan.recalled for loan in held)
            for loan in [each for each in held[::-1] if each.recall is not None and not each.recalled]:
                if excess > 0:
                    excess -= 1
                    if not self._recall(loan):
                        look_again = min(look_again, now + _SOON)
        return look_again

    def recall_one(self, recall: Recall) -> bool:
        """Recall one request, whatever its endpoint holds, if rule 4 allows it. Return whether it was recalled."""
        for loan in self._loans.values():
            if loan.recall is recall and not loan.recalled:
                self._recall(loan)
                return loan.recalled
        return False

    def _recall(self, loan: _Loan) -> bool:
        """Recall a request if rule 4 allows it. Return False if it is about to be sent, to try again soon."""
        if loan.recall is None or loan.recall.end is None:
            return False
        if loan.taken_at >= self._read_until:
            if self._unread is not None and self._unread >= self._read_until:
                return True
            self._unread = loan.taken_at
        loan.recalled = True
        loan.recall.end()
        return True

    def _forget(self, holder: int) -> _Loan | None:
        loan = self._loans.pop(holder, None)
        if loan is not None:
            held = self._held[loan.kind]
            held.remove(loan)
            if not held:
                del self._held[loan.kind]
        return loan

    def _heard_at(self, kind: str) -> float:
        """Return when this endpoint answered last, or when the oldest of its requests was sent, if that is later."""
        return max(self._answered_at.get(kind, -math.inf), self._held[kind][0].taken_at)
