"""Flow control: a connection is read only as fast as its requests are answered."""

from __future__ import annotations

import asyncio
import select
import sys
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from imdsproxy.server.held_bytes import HeldBytes

# The reasons not to read: the application has not taken the body yet (uvicorn's own reason); a request waits for the
# answer to an earlier one; the last read was full, so other connections come first; the connection is ending.
_BODY, _WAITING, _TURN, _END = 1, 2, 4, 8


class Brake(FlowControl):
    """uvicorn's flow control, with more reasons to stop reading.

    uvicorn alone resumes reading after each answer. A connection that sends requests without end would then have any
    number of them parsed and in memory.
    """

    def __init__(self, transport: asyncio.Transport, held: HeldBytes) -> None:
        # uvicorn's own constructor is not called: it makes an event of 1 kB, which most connections never need.
        self._transport = transport
        self._held = held
        self._pauses = 0
        self.write_paused = False
        self._writable: asyncio.Event | None = None

    @property
    def delays(self) -> bool:
        """Whether the proxy has stopped reading, for more than one turn of the loop."""
        return self._pauses & ~_TURN != 0

    @property
    def held(self) -> bool:
        """Whether a request waits for the answer to an earlier one."""
        return bool(self._pauses & _WAITING)

    @property
    def stopped(self) -> bool:
        """Whether nothing more is read from this connection."""
        return bool(self._pauses & _END)

    def pause_reading(self) -> None:
        """Stop reading until `resume_reading`, because of a body."""
        self._pause(_BODY)

    def resume_reading(self) -> None:
        """Resume reading after `pause_reading`, unless there is another reason not to read."""
        self._resume(_BODY)

    def hold(self) -> None:
        """Stop reading until `release`, because a request waits for the answer to an earlier one."""
        self._pause(_WAITING)

    def release(self) -> None:
        """Resume reading after `hold`."""
        self._resume(_WAITING)

    def yield_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop reading until the other connections have had their turn."""
        if not self._transport.is_closing():
            self._pause(_TURN)
            loop.call_soon(self._resume, _TURN)

    def stop(self) -> None:
        """Stop reading for good."""
        self._pause(_END)

    async def drain(self) -> None:
        """Wait until the transport accepts the next answer. Abort the connection if too many others wait here.

        The proxy waits here only for a client that pipelines requests and does not read their answers.
        """
        if not self.write_paused:
            return
        if self._writable is None:
            self._writable = asyncio.Event()
        if not self._held.wait_behind():
            self._transport.abort()
            await self._writable.wait()
            return
        try:
            await self._writable.wait()
        finally:
            self._held.go_on()

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than the proxy writes."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Note that the client has caught up, and wake the coroutines that wait in `drain`."""
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def _pause(self, why: int) -> None:
        if not self._pauses:
            self._transport.pause_reading()
        self._pauses |= why

    def _resume(self, why: int) -> None:
        if self._pauses & why:
            self._pauses &= ~why
            if not self._pauses:
                self._transport.resume_reading()


def hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the peer has closed both directions, and not only its sending (poll(2), POLLHUP).

    Over TCP, a peer that has closed its socket looks like one that has ended its sending, until it sends a reset.
    Windows does not report it, so the result is False there.
    """
    return sys.platform != "win32" and bool(_events(transport, 0) & select.POLLHUP)


def unread(transport: asyncio.Transport) -> bool:
    """Return whether bytes, or the end of the client's sending, have arrived and are not yet read."""
    if sys.platform == "win32":
        descriptor = _descriptor(transport)
        return descriptor is not None and bool(select.select([descriptor], [], [], 0)[0])
    return _events(transport, select.POLLIN) != 0


def _descriptor(transport: asyncio.Transport) -> int | None:
    connection = transport.get_extra_info("socket")
    return None if connection is None or connection.fileno() < 0 else connection.fileno()


def _events(transport: asyncio.Transport, wanted: int) -> int:
    """Return those of the wanted events that have occurred, and errors and hang-ups in any case; 0 if closed."""
    descriptor = _descriptor(transport)
    if sys.platform == "win32" or descriptor is None:
        return 0
    poll = select.poll()
    poll.register(descriptor, wanted)
    return sum(events for _, events in poll.poll(0))


class Pipeline(list[tuple[RequestResponseCycle, Any]]):
    """Requests that wait for the answers to earlier ones.

    It replaces uvicorn's deque, which takes 760 bytes even if it is empty.
    """

    __slots__ = ()

    def appendleft(self, item: tuple[RequestResponseCycle, Any]) -> None:
        """Add an item at the end that `pop` does not take from."""
        self.insert(0, item)
