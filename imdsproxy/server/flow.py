"""Reading and writing at the pace of the answers."""

from __future__ import annotations

import asyncio
import select
import socket
import sys

from uvicorn.protocols.http.flow_control import FlowControl


class Brake(FlowControl):
    """uvicorn's flow control, which does not read on while requests of the connection wait.

    uvicorn itself resumes reading after each answer, so that one connection that sends requests without end would have
    any number of them parsed and in memory.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.held = False
        """A request waits for the answer to an earlier one."""
        self.stopped = False
        """Nothing more is read from this connection."""

    def resume_reading(self) -> None:
        """Read on, unless a request waits."""
        if not self.held and not self.stopped:
            super().resume_reading()

    def hold(self) -> None:
        """Stop reading until `release`."""
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on after `hold`."""
        if self.held:
            self.held = False
            self.resume_reading()

    def stop(self) -> None:
        """Stop reading for good."""
        self.stopped = True
        self.pause_reading()


def hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the peer of a Unix socket has closed it, rather than only ended its sending (poll(2), POLLHUP).

    Over TCP the two cannot be told apart before an answer is written, so this returns False there.
    """
    connection = transport.get_extra_info("socket")
    if sys.platform == "win32" or connection is None or connection.family != socket.AF_UNIX:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
