"""The client of a request."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """What is known of a client. Every unknown part is None."""

    address: str | None = None
    """The source address of a TCP connection, as text."""
    user: int | None = None
    """The user id at the other end of a Unix socket, from the kernel."""
    process: int | None = None
    """The process id at the other end of a Unix socket; None if its container has process ids of its own."""
    proxy: str | None = None
    """The imdsproxy instance that the request names in `Imdsproxy-Via`. Any client can write that field."""

    @property
    def name(self) -> str:
        """The client's name in the access log."""
        if self.process is not None:
            return f"process {self.process}"
        if self.user is not None:
            return f"another container, user {self.user}"
        return self.address or "-"


UNKNOWN = Peer()
"""The client of whom nothing is known."""
