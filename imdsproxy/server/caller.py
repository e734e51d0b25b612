"""The client of a request, from its scope: from the connection under `imdsproxy serve`, else from another server."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.protocol.messages import Request
from imdsproxy.protocol.peer import Peer, PeerKind
from imdsproxy.server.extensions import PEER_EXTENSION, Caller, extension

if TYPE_CHECKING:
    from starlette.types import Scope

    from imdsproxy.access.groups import Memberships

ENDED = Peer(unknown="the connection has ended")
"""The client of a connection that had ended before it was looked up."""


def peer_of(request: Request, scope: Scope) -> Peer:
    """Return what is known of the client, from the kernel or from another server.

    `Imdsproxy-Via` is believed at a Unix socket only: IMDSPROXY_UDS decides who may connect there, so the operator has
    named those that may be proxies. Over TCP, any client can write that field.
    """
    caller = _caller(scope)
    if caller is None:
        client = scope.get("client")
        return Peer(
            address=client[0] if client else None,
            kind=PeerKind.TCP if client else PeerKind.NONE,
            unknown="only `imdsproxy serve` looks clients up",
        )
    peer = caller.peer()
    return peer._replace(proxy=request.hops[-1]) if request.hops and peer.kind is PeerKind.UNIX else peer


class Asking:
    """The client of one request, which is found the first time that it matters."""

    __slots__ = ("_request", "_scope", "peer")

    def __init__(self, request: Request, scope: Scope) -> None:
        self._request = request
        self._scope = scope
        self.peer: Peer | None = None
        """The client; None if it did not matter."""

    def __call__(self) -> Peer:
        """Return the client."""
        if self.peer is None:
            self.peer = peer_of(self._request, self._scope)
        return self.peer


async def note_process(scope: Scope, peers: PeerLookup) -> None:
    """Add the process to what the connection knows of its client, if a search may find it. It takes milliseconds."""
    caller = _caller(scope)
    if caller is not None and peers.can_find_process(peer := caller.peer()):
        caller.note_peer(await peers.with_process(peer))


async def note_groups(scope: Scope, memberships: Memberships) -> None:
    """Look the groups of the client's user up, unless they are known. It can take seconds."""
    caller = _caller(scope)
    user = None if caller is None else caller.peer().user
    if user is not None:
        await memberships.learn(user)


class _Gone:
    """A connection that has ended before its client mattered."""

    def peer(self) -> Peer:
        return ENDED

    def note_peer(self, peer: Peer | None) -> None:
        del peer


def _caller(scope: Scope) -> Caller | None:
    """Return the connection, or None if the server is another than `imdsproxy serve`."""
    reference = cast("weakref.ref[Caller] | None", extension(scope, PEER_EXTENSION))
    return None if reference is None else reference() or _Gone()
