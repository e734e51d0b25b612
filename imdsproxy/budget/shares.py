"""How many permits one endpoint may hold, so that an endpoint that hangs does not starve the others.

Half of the permits is an endpoint's share. The rules:

1. While a request to another endpoint waits, an endpoint gets no permit beyond its share.
2. While no other waits it may have them all, unless it has requests that cannot be recalled.
3. If another waits, and an endpoint has more than its share and has been silent for `SILENCE` seconds, its newest
   requests beyond the share are recalled: they are ended, and their permits return one window later.
4. A request that IMDS has perhaps not read yet would be counted when IMDS reads it, together with those that were sent
   in its stead. IMDS has read a request if it has answered one that was sent later. Of those that it has perhaps not
   read, one is recalled, and the next only after IMDS has answered what was sent later.
5. An endpoint whose requests were recalled, or ended without an answer, keeps to its share until it answers promptly
   again, whether another waits or not. So the first to meet an endpoint that hangs waits, and the next does not.

One permit has no half: with a budget of one, a request waits until the permit has returned. A request without an
endpoint is not bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SILENCE = 1.0
"""Seconds without any answer after which an endpoint is taken to hang; longer than IMDS takes when all is well."""

_SOON = 0.05


@dataclass(slots=True, eq=False)
class Recall:
    """How to end one request before it is answered."""

    end: Callable[[], object] | None = None
    """Ends it; None while it is not at IMDS."""


@dataclass(slots=True, eq=False)
class _Loan:
    kind: str
    taken_at: float
    recall: Recall | None
    recalled: bool = False


class Shares:
    """The permits that are lent, by the endpoint for which they are. All times are monotonic seconds."""

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
        """Return the kinds that get no permit now, given the kinds that wait."""
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
        """End what silent endpoints hold beyond their share; return the moment at which to look again.

        To be called while a request waits whose endpoint is not full.
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

    def _recall(self, loan: _Loan) -> bool:
        """Recall a request if it may be; return whether that is all that can be done before IMDS answers again."""
        if loan.recall is None or loan.recall.end is None:
            return False  # it is about to be sent
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
