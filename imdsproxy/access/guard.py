"""The rules in force, and the decisions that were made by them.

The full path asks `refusal` about each request, before anything else is done with it: a client that may not have the
answer neither joins a fetch nor costs one. The fast path asks `allows` with a parsed head, and `remembers` with a known
one. Where either says no, the full path decides, so a refusal is worded, logged and counted in one place.

A decision is remembered by the client and the key of the target. That is enough, because the fast path answers GET
only, and no target with `bypass_cache`, so the key holds everything that the decision depends on.

A user or program is looked up once for a connection, the pod that has an address for each decision. A connection can
begin before the address of a new pod is known, and can last longer than what is known of the pod may be used. The
groups of a user are looked up for each decision as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from imdsproxy.access.decision import Verdict, decide
from imdsproxy.access.rules import DEFAULT, RESERVED, Mode, Rules
from imdsproxy.access.subject import Subject
from imdsproxy.protocol.messages import Key, Refusal, Request
from imdsproxy.protocol.peer import Pod

_MOST_REMEMBERED = 4096
_LONGEST_REMEMBERED = 1024  # characters of a key


class RefusedAccess(NamedTuple):
    """A refusal that was made, or in audit mode one that would have been."""

    verdict: Verdict
    subject: Subject
    method: str
    path: str
    enforced: bool
    """Whether the client got the refusal."""


class Guard:
    """Refuses what the rules do not allow. `rules` can be replaced at any time."""

    def __init__(
        self,
        rules: Rules,
        *,
        audit: bool = False,
        observe: Callable[[RefusedAccess], None] = lambda _refused: None,
        pod_at: Callable[[str], Pod | None] | None = None,
        groups_of: Callable[[int | str], frozenset[int] | None] = lambda _user: None,
    ) -> None:
        """Put rules in force.

        Args:
            rules: The rules.
            audit: Whether refusals are only reported to `observe`, whatever the mode of the rules.
            observe: Called with each refusal, in the step in which it is decided.
            pod_at: Returns the pod that has an address, or None if that is unknown; None if pods are never known.
            groups_of: Returns the groups of a user, or None if they are unknown.
        """
        self._audit = audit
        self._observe = observe
        self._pod_at = pod_at
        self._groups_of = groups_of
        self.rules = rules
        self._remembered: set[tuple[Subject, Key]] = set()

    def replace(self, rules: Rules) -> None:
        """Put other rules in force. Every decision that was remembered is forgotten."""
        self.rules = rules
        self._remembered = set()

    @property
    def knows_pods(self) -> bool:
        """Whether rules can name pods."""
        return self._pod_at is not None

    @property
    def decides(self) -> bool:
        """Whether the rules are in use. A file can disable them."""
        return self.rules.mode is not Mode.DISABLED

    @property
    def enforces(self) -> bool:
        """Whether a refused request is answered with 403, and not only reported."""
        return self.rules.mode is Mode.ENFORCE and not self._audit

    def refusal(self, subject: Subject, request: Request) -> Refusal | None:
        """Return the refusal of a request, or None if it is to be served."""
        subject = self._now_known(subject)
        verdict = self._decide(subject, request)
        if verdict.allowed:
            return None
        path = request.target.path
        self._observe(RefusedAccess(verdict, subject, request.method, path, self.enforces))
        return _refusal(verdict, path) if self.enforces else None

    def allows(self, subject: Subject, request: Request) -> bool:
        """Return whether the rules allow a request of the fast path, and remember it if they do."""
        subject = self._now_known(subject)
        if not self._decide(subject, request).allowed:
            return False
        key = request.target.key
        if len(key) <= _LONGEST_REMEMBERED:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered = set()
            self._remembered.add((subject, key))
        return True

    def remembers(self, subject: Subject, key: Key) -> bool:
        """Return whether `allows` has allowed this client a request with this key."""
        return (self._now_known(subject), key) in self._remembered

    def _now_known(self, subject: Subject) -> Subject:
        """Return the client with what can change during a connection: its pod, and the groups of its user."""
        if self.rules.of_groups and subject.user is not None:
            subject = subject._replace(groups=self._groups_of(subject.user))
        if self._pod_at is None or subject.address is None:
            return subject
        pod = self._pod_at(subject.address)
        return (
            subject if pod is None else subject._replace(namespace=pod.namespace, service_account=pod.service_account)
        )

    def _decide(self, subject: Subject, request: Request) -> Verdict:
        if not self.decides:
            return Verdict(allowed=True, rule=DEFAULT)
        return decide(self.rules, subject, request.method, request.target)


_BY = {
    DEFAULT: "no access rule allows it",
    RESERVED: "the access rules reserve it for others",
}


def _refusal(verdict: Verdict, path: str) -> Refusal:
    why = _BY.get(verdict.rule, f'the access rule "{verdict.rule}" refuses it')
    return Refusal(
        403,
        f"access-{verdict.rule}",
        "forbidden",
        f"This client may not ask for {path[:100]}: {why}. See IMDSPROXY_ACCESS_FILE; "
        '"imdsproxy access explain" shows the reason.',
    )
