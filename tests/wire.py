"""Connections without sockets: a transport like uvloop's, a scripted client, and time that moves in steps."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
import socket
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar, cast

Result = TypeVar("Result")

_BEGIN = 1_000.0
# Every moment is a multiple of this (some microsecond): sums of such times are exact, so that two worlds which came to
# a moment by different timers agree about it to the last bit.
_STEPS = 1 << 20

# What uvloop uses (handles/basetransport.pyx), in bytes.
_HIGH_WATER = 65536
_LOW_WATER = 16
_LONGEST_READ = 16_384


def on_the_grid(seconds: float) -> float:
    """Return the next moment that there is in a `SteppedLoop`."""
    return math.ceil(seconds * _STEPS) / _STEPS


class _Steps(selectors.SelectSelector):
    """Instead of waiting, moves the time on to the next timer, but not beyond the end of the step."""

    now = end = _BEGIN
    stop: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.now + timeout > self.end:
            self.now = self.end
            self.stop()
        else:
            self.now = on_the_grid(self.now + timeout)
        return []


class _Timer(asyncio.TimerHandle):
    """A timer that rings after those of the same moment that were set before it."""

    _numbers = itertools.count()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._number = next(self._numbers)

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self._number) < (other.when(), other._number)


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop that runs until nothing is left to be done before a moment, and no longer."""

    def __init__(self) -> None:
        self._steps = _Steps()
        super().__init__(self._steps)
        self._steps.stop = self.stop

    def time(self) -> float:
        return self._steps.now

    def call_at(  # type: ignore[override]  # not for any arguments of a callback
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(cast("Any", self)._scheduled, timer)
        cast("Any", timer)._scheduled = True
        return timer

    def run_on(self, seconds: float = 0.0) -> None:
        """Advance the time, and run everything that is due by then."""
        self._steps.end = on_the_grid(self._steps.now + seconds)
        self.run_forever()

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function within the loop, and run everything that is due."""
        results: list[Result] = []
        self.call_soon(lambda: results.append(function()))
        self.run_on()
        return results[0]

    async def connect_accepted_socket(  # type: ignore[override]  # without TLS
        self, protocol_factory: Callable[[], Any], sock: Any
    ) -> tuple[Wire, asyncio.BufferedProtocol]:
        """Make the transport of an `Accepted`, behind a `Reader`."""
        reader = protocol_factory()
        return cast("Accepted", sock).begin(reader._connection), reader

    def end(self) -> None:
        """Cancel what is still under way, and close."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.run_on()
        assert not asyncio.all_tasks(self), "a task went on although it was cancelled"
        self.close()


class Wire(asyncio.Transport):
    """A connection as its server sees it by uvloop (handles/stream.pyx), and the client at its other end.

    The network takes nothing but what the client reads: whatever that leaves is in the write buffer.
    """

    lent: Callable[[bytes], Any] = bytes
    """Makes of what was read what the protocol is given: bytes with uvloop, a bytearray with Windows' own loop."""

    def __init__(self, loop: SteppedLoop, protocol: asyncio.Protocol, peer: tuple[str, int] | None) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._peer = peer
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._allowance = math.inf
        self._ended = False  # the client sends no more
        self._reset = False  # the client is gone altogether
        self._reading = False
        self._writing_paused = False
        self._closing = False
        self._lost = False
        self._closed = False
        self.received: list[tuple[float, bytes]] = []
        """What the client got, and when."""
        self.end: tuple[float, str] | None = None
        """When the connection was lost, and of what."""
        self._high_water = _HIGH_WATER
        self.fullest = 0
        """The most bytes that were in the write buffer."""
        loop.call_soon(self._begin)

    # The client's side

    def send(self, data: bytes) -> None:
        """Send bytes; they come in as one read, unless the server does not read."""
        self._inbox += data
        self._loop.call_soon(self._deliver)

    def finish(self) -> None:
        """Send no more (FIN)."""
        self._ended = True
        self._loop.call_soon(self._deliver)

    def vanish(self) -> None:
        """Be gone (RST); who neither reads nor writes notices nothing of it."""
        self._reset = True
        self._inbox.clear()
        if self._reading or self._outbox:
            self._loop.call_soon(self._fail, ConnectionResetError())

    def take(self, size: float) -> None:
        """Read so many bytes more than until now and then none; all for infinity."""
        self._allowance = size
        self._loop.call_soon(self._flush)

    # What the protocol calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._peer if name == "peername" and self._peer is not None else default

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closed:
            raise RuntimeError("unable to perform operation; the handler is closed")
        if not data or self._lost:
            return
        self._outbox += data
        if self._reset:
            self._fail(BrokenPipeError())
            return
        self._flush()
        self.fullest = max(self.fullest, len(self._outbox))
        if len(self._outbox) > self._high_water and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert low is None
        self._high_water = _HIGH_WATER if high is None else high

    def get_write_buffer_size(self) -> int:
        return 0 if self._closed else len(self._outbox)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._closing and not self._reading:
            self._reading = True
            self._loop.call_soon(self._deliver)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._reading = False
        if not self._outbox:
            self._lose(None)

    def abort(self) -> None:
        self._fail(None)

    # What the loop calls

    def _begin(self) -> None:
        self._protocol.connection_made(self)
        self.resume_reading()

    def _deliver(self) -> None:
        try:
            while self._reading and self._inbox:
                read = bytes(self._inbox[:_LONGEST_READ])
                del self._inbox[:_LONGEST_READ]
                self._protocol.data_received(self.lent(read))
            if self._reading and self._ended:
                self._reading = False
                if not self._protocol.eof_received():
                    self.close()
        except Exception as error:
            self._fail(error)
            raise

    def _flush(self) -> None:
        if self._lost or self._closed:
            return
        size = int(min(len(self._outbox), self._allowance))
        if size:
            self._allowance -= size
            now, taken = self._loop.time(), bytes(self._outbox[:size])
            del self._outbox[:size]
            if self.received and self.received[-1][0] == now:
                taken = self.received.pop()[1] + taken
            self.received.append((now, taken))
        if self._writing_paused and len(self._outbox) <= _LOW_WATER:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._closing and not self._outbox:
            self._lose(None)

    def _fail(self, error: Exception | None) -> None:
        if self._lost or self._closed:
            return
        self._closing = True
        self._reading = False
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._say_lost, error)

    def _say_lost(self, error: Exception | None) -> None:
        self.end = self._loop.time(), type(error).__name__ if error else "closed"
        try:
            self._protocol.connection_lost(error)
        finally:
            self._closed = True


class Accepted:
    """A connection as accept(2) returns it, with the first bytes of its client, before it has a transport."""

    family = -1

    def getpeername(self) -> tuple[str, int]:
        """Refuse, as a connection that has ended does: the lookup of clients has tests of its own."""
        raise OSError(107, "Transport endpoint is not connected")

    def __init__(self, loop: SteppedLoop, peer: tuple[str, int] | None, sent: bytes, share: float) -> None:
        """`share` is how much of an answer finds room in the socket's buffer."""
        self._loop = loop
        self._peer = peer
        self._inbox = sent
        self._share = share
        self.received: list[tuple[float, bytes]] = []
        """What the client got before there was a transport, and when."""
        self.wire: Wire | None = None
        """The transport, once there is one."""
        self.protocol: Any = None
        self.end: tuple[float, str] | None = None
        """When it was closed without a transport."""

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._inbox:
            raise BlockingIOError
        read = self._inbox[:size]
        if not flags & socket.MSG_PEEK:
            self._inbox = self._inbox[size:]
        return read

    def send(self, data: bytes, flags: int = 0) -> int:
        assert flags == socket.MSG_DONTWAIT
        taken = data[: int(len(data) * self._share)]
        if not taken:
            raise BlockingIOError
        self.received.append((self._loop.time(), taken))
        return len(taken)

    def close(self) -> None:
        assert not self._inbox, "the client may lose the answer"
        self.end = self._loop.time(), "closed"

    def begin(self, protocol: Any) -> Wire:
        """Start with a transport."""
        self.protocol = protocol
        self.wire = Wire(self._loop, protocol, self._peer)
        self.wire.received += self.received
        if self._inbox:
            self.wire.send(self._inbox)
        return self.wire
