"""What access rules and turns need to know of a client, and the kernel does not report at once: groups, process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imdsproxy.clock import Clock
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.protocol.messages import Request
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.server.caller import note_groups, note_process

if TYPE_CHECKING:
    from starlette.types import Scope

    from imdsproxy.access.groups import Memberships


class ClientFacts:
    """Looks up a client's groups and process, where something depends on them."""

    def __init__(self, proxy: Proxy, peers: PeerLookup, memberships: Memberships | None, clock: Clock) -> None:
        """Look nothing up yet.

        Args:
            proxy: Has the access rules, and the requests that wait for permits.
            peers: Looks clients up.
            memberships: What is known of the groups of users; None if nothing is.
            clock: The clock.
        """
        self._proxy = proxy
        self._peers = peers
        self._memberships = memberships
        self._clock = clock

    async def learn(self, request: Request, scope: Scope) -> None:
        """Note in the scope what depends on the client of this request."""
        access = self._proxy.access
        if access is not None and access.rules.of_groups and self._memberships is not None:
            await note_groups(scope, self._memberships)
        if access is not None and access.rules.of_programs:
            await note_process(scope, self._peers)  # a rule names its program
        elif self._is_crowded() and self._proxy.fresh_hit(request, self._clock.monotonic()) is None:
            await note_process(scope, self._peers)  # its user's processes take turns

    def _is_crowded(self) -> bool:
        """Return whether requests wait for permits, so that turns matter."""
        return any(limiter.waiting for limiter in self._proxy.fetcher.limiters.values())
