"""Clients outside IMDSPROXY_CLIENTS, who may not ask at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imdsproxy.clock import Clock
from imdsproxy.ops.refusals import OutsiderLog
from imdsproxy.protocol.client_ranges import ClientRanges
from imdsproxy.server.extensions import by_own_server, by_unix_socket

if TYPE_CHECKING:
    from starlette.types import Scope


class Outsiders:
    """Recognises a client that may not ask, and logs it: its answer is NOT_A_CLIENT."""

    def __init__(self, ranges: ClientRanges | None, clock: Clock) -> None:
        """Recognise the clients outside these ranges; with None, every client may ask."""
        self._ranges = ranges
        self.note: Callable[[str], None] = OutsiderLog(clock)
        """Logs that a client with this address was refused."""

    def include(self, address: str, local: Callable[[], str]) -> bool:
        """Return whether a client may not ask.

        Args:
            address: The client's address.
            local: Returns the address at which the client is connected. If it is the client's own as well, the client
                is on this machine: the kernel drops packets from elsewhere that carry one of its addresses.
        """
        if self._ranges is None or self._ranges.include(address) or address == local():
            return False
        self.note(address)
        return True

    def include_client_of(self, scope: Scope) -> bool:
        """Return whether another server names a client that may not ask. Our own server has asked before."""
        client, server = scope.get("client"), scope.get("server")
        if self._ranges is None or client is None or by_own_server(scope) or by_unix_socket(scope):
            return False
        return self.include(client[0], lambda: server[0] if server else "")
