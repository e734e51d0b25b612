"""The client of a request, as the application sees it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from imdsproxy.budget.turns import turn_of
from imdsproxy.protocol.messages import Request
from imdsproxy.protocol.peer import Peer, PeerKind
from imdsproxy.protocol.target import read_target
from imdsproxy.server.caller import peer_of
from imdsproxy.server.extensions import PEER_EXTENSION

VIA = "0123456789abcdef"


class _Caller:
    """A connection that knows its client."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def peer(self) -> Peer:
        return self._peer


def request(*hops: str) -> Request:
    target = read_target(b"/metadata/instance?api-version=2021-02-01")
    return Request("GET", target, hops=hops)  # type: ignore[arg-type]  # it is no refusal


def scope(peer: Peer) -> Any:
    caller = _Caller(peer)
    extensions = {PEER_EXTENSION: weakref.ref(caller)}
    return {"client": ("127.0.0.1", 1), "extensions": extensions, "connection": caller}


@pytest.mark.parametrize(
    ("peer", "proxy"),
    [
        (Peer(user=1, process=2, kind=PeerKind.UNIX), VIA),
        (Peer(user=1, kind=PeerKind.UNIX), VIA),
        (Peer(address="127.0.0.1", user=1, kind=PeerKind.TCP), None),
        (Peer(address="127.0.0.1", kind=PeerKind.TCP, unknown="closed"), None),
        (Peer(address="10.0.0.7", kind=PeerKind.TCP), None),
    ],
)
def test_via_is_believed_at_a_unix_socket_only(peer: Peer, proxy: str | None) -> None:
    assert peer_of(request("f" * 16, VIA), scope(peer)) == peer._replace(proxy=proxy)
    assert peer_of(request(), scope(peer)) == peer


def test_via_over_tcp_makes_no_turn() -> None:
    peer = Peer(address="10.0.0.7", kind=PeerKind.TCP)
    turns = {turn_of(peer_of(request(f"{number:016x}"), scope(peer))) for number in range(100)}
    assert turns == {turn_of(peer)}


def test_client_of_a_connection_that_is_gone_is_unknown() -> None:
    gone = scope(Peer(address="127.0.0.1", user=0, kind=PeerKind.TCP))
    del gone["connection"]
    assert peer_of(request(VIA), gone) == Peer(unknown="the connection has ended")


@pytest.mark.parametrize("via", [(), (VIA,)])
def test_under_another_server_a_client_is_its_address(via: tuple[str, ...]) -> None:
    found = peer_of(request(*via), {"client": ("10.0.0.7", 1)})
    assert (found.address, found.kind, found.proxy, found.user) == ("10.0.0.7", PeerKind.TCP, None, None)
    assert found.unknown
    assert peer_of(request(*via), {"client": None}).kind is PeerKind.NONE
