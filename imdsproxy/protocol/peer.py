"""The client of a request: what is known of who asks."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """What is known of a client. A part that is not known is None."""

    address: str | None = None
    """The source address of a TCP connection, as text."""
    user: int | None = None
    """The number of the user at the other end of a Unix socket, as the kernel tells it."""
    process: int | None = None
    """The number of that user's process; None if the process is in a container that has numbers of its own."""
    proxy: str | None = None
    """The imdsproxy instance that names itself in the request. Any client can write that, so it proves nothing."""

    @property
    def name(self) -> str:
        """The client's name for people, as the access log has it."""
        if self.process is not None:
            return f"process {self.process}"
        if self.user is not None:
            return f"another container, user {self.user}"
        return self.address or "-"


UNKNOWN = Peer()
"""A client of which nothing is known."""
