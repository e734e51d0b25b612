"""The log of refused clients: by the access rules, or by their address."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from imdsproxy.access.subject import Subject
from imdsproxy.clock import Clock
from imdsproxy.ops.log_limit import RepeatLimit

if TYPE_CHECKING:
    from imdsproxy.access.guard import RefusedAccess

logger = logging.getLogger(__name__)

_LONGEST_PATH = 200


class RefusalLog:
    """Logs refusals, at most one for each rule in a few seconds, because any client can cause them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limit = RepeatLimit()

    def __call__(self, refused: RefusedAccess) -> None:
        """Log a refusal."""
        rule = refused.verdict.rule
        omitted = self._limit.admit(rule, self._clock.monotonic())
        if omitted is None:
            return
        fields: dict[str, object] = {"rule": rule, "client": _client(refused.subject), "method": refused.method}
        fields["path"] = refused.path[:_LONGEST_PATH]
        if omitted:
            fields["omitted"] = omitted
        logger.warning("access refused" if refused.enforced else "access would be refused", extra={"fields": fields})


class OutsiderLog:
    """Logs clients that may not ask at all, at most one in a few seconds, because they can connect at any rate."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limit = RepeatLimit()

    def __call__(self, address: str) -> None:
        """Log that a client was refused."""
        omitted = self._limit.admit(None, self._clock.monotonic())
        if omitted is None:
            return
        fields: dict[str, object] = {"client": address}
        if omitted:
            fields["omitted"] = omitted
        logger.warning("client refused", extra={"fields": fields})


def _client(subject: Subject) -> str:
    """Return who was refused, in words."""
    user = "" if subject.user is None else f"user {subject.user}"
    account = "" if subject.service_account is None else f", service account {subject.service_account}"
    pod = "" if subject.namespace is None else f"namespace {subject.namespace}{account}"
    known = filter(None, (user, subject.executable, subject.address, pod))
    return ", ".join(known) or "unknown"
