"""The emulator as an ASGI application on uvicorn's HTTP/1.1 protocol, with access to the transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from imdsproxy.emulator.control import control, is_control
from imdsproxy.emulator.control_guard import refusal
from imdsproxy.emulator.messages import Answer, Request, read_query
from imdsproxy.emulator.publishing import tenant_answer, tenant_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imdsproxy.emulator.emulator import Emulator, Visit

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

EXTENSION = "emulator.connection"
GARBAGE = b"\x00\xff\xfeNothing here is HTTP\x00\r\n\r\n"
KEEP_ALIVE = 75
# SO_LINGER with no time: closing then sends RST. Its structure is two shorts on Windows, two ints elsewhere.
LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also hands the application its transport and the target as it was sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False

    def on_headers_complete(self) -> None:
        """Add the connection to the scope before the application is called."""
        self.scope["extensions"] = {EXTENSION: {"transport": self.transport, "target": self.url}}
        super().on_headers_complete()


class Connections:
    """Makes the protocol of each connection, and ends all connections."""

    def __init__(self, emulator: Emulator) -> None:
        application = Application(emulator)
        self._state = ServerState()
        self._config = Config(
            application,
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            workers=1,  # stated, so that WEB_CONCURRENCY in the environment is not read
        )
        self._config.load()

    def __call__(self) -> Protocol:
        """Make the protocol of one connection."""
        return Protocol(self._config, self._state, {})

    async def end(self) -> None:
        """Abort every connection, and return once no task of one runs."""
        await asyncio.sleep(0)  # a connection that was just accepted gets its protocol here
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks))
        await asyncio.sleep(0)  # the transports close their sockets here


class Application:
    """Answers each request as the emulator decides, or breaks its connection."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = tuple(scope["headers"])
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        text_headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        request = Request(method, path, read_query(scope["query_string"]), text_headers)
        if is_control(path):
            request = await _with_body(request, receive)
            await self._send(control(self.emulator, request), send)
            return
        # A developer's tokens open real resources, unlike the emulator's: no page in a browser gets one.
        refused = refusal(request, self.emulator.page_token) if self.emulator.machine.identity.lender else None
        if refused is not None:
            await self._send(refused, send)
            return
        published = tenant_document(path)
        if published is not None:
            await self._send(tenant_answer(self.emulator, request, *published), send)
            return
        connection = scope["extensions"][EXTENSION]
        visit = self.emulator.accept(request, connection["target"], headers)
        try:
            await self._serve(visit, request, connection["transport"], receive, send)
        finally:
            self.emulator.leave(visit)

    async def _serve(
        self, visit: Visit, request: Request, transport: asyncio.Transport, receive: Receive, send: Send
    ) -> None:
        if request.method == "POST":
            request = await _with_body(request, receive)
        breakage = visit.fault.breakage if visit.fault is not None else None
        if visit.identity and self.emulator.machine.identity.lender is not None:
            answer = await asyncio.to_thread(self.emulator.answer, visit, request)
        else:
            answer = self.emulator.answer(visit, request)
        delay = visit.latency + (answer.delay if breakage is None else 0.0)
        if delay and await _disconnected_within(delay, receive):
            return
        match breakage:
            case None:
                visit.arrival.status = answer.status
                await self._send(answer, send)
                return
            case "hang":
                pass
            case "reset":
                _reset(transport)
            case "garbage":
                transport.write(GARBAGE)
                transport.close()
            case "truncate":
                visit.arrival.status = answer.status
                await self._send_part(answer, send)
                transport.close()
        # uvicorn answers 500 unless the connection is gone when the application returns.
        await _disconnected(receive)

    async def _send(self, answer: Answer, send: Send) -> None:
        headers = self.emulator.headers_of(answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _send_part(self, answer: Answer, send: Send) -> None:
        """Announce the whole body, or one byte if it is empty, and send the first half."""
        announced = Answer(answer.status, answer.body or b" ", answer.content_type, answer.headers)
        headers = self.emulator.headers_of(announced)
        part = answer.body[: len(answer.body) // 2]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": part, "more_body": True})


async def _with_body(request: Request, receive: Receive) -> Request:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return replace(request, body=b"".join(parts))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _disconnected_within(seconds: float, receive: Receive) -> bool:
    """Wait for these seconds or until the client disconnects, and return whether it did."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_disconnected(receive), seconds)
        return True
    return False


def _reset(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    transport.abort()
