"""The HTTP client for IMDS. Only this module imports httpx, and it turns httpx's errors into `Failure`."""

from __future__ import annotations

import asyncio
import errno
import re
import sys
from collections.abc import AsyncIterable, Iterator
from typing import cast

from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.cache_status import reports_loop
from imdsproxy.protocol.messages import Failure, FailureKind, Headers, Response
from imdsproxy.upstream.headers import to_client
from imdsproxy.upstream.loop_advice import missing_exemption, own_user

# None prevents the import of the module (Python language reference, 5.3.1); httpx then has no command line.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

import httpx  # noqa: E402  # after the line above

BODIES_AT_ONCE = 8
"""The number of bodies of the longest size that may be received at once."""
SLOW_READ_TIMEOUT = 130.0
"""Seconds: the first scheduled-events request may take two minutes (Microsoft's scheduled-events page)."""

# RFC 9110 section 5.5 allows no control character in a field value but a tab.
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class UpstreamClient:
    """Sends requests to IMDS. It follows no redirect, and no environment variable changes where requests go."""

    def __init__(
        self,
        address: Address,
        *,
        connect_timeout: float = 2.0,
        read_timeout: float = 30.0,
        max_body_bytes: int = 1 << 20,
    ) -> None:
        self.address = address
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._max_body_bytes = max_body_bytes
        self._receiving = 0  # bytes of all bodies that are not complete yet
        self._url = httpx.URL(scheme="http", host=address.host, port=address.port, path="/")
        # The transport, not the client: a client adds headers, cookies, redirects and authentication of its own.
        self._transport = httpx.AsyncHTTPTransport(
            # IMDS speaks plain HTTP, and an unused TLS context would take 1.4 MB.
            verify=cast("bool", None),
            trust_env=False,
            uds=address.unix,
            # One connection a request. At five requests a second reuse would save nothing, and bytes that a broken
            # upstream sends behind one answer could be taken for the answer to the next request.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Send one request with exactly this target, and return the complete answer or the failure."""
        read_timeout = max(SLOW_READ_TIMEOUT, self._read_timeout) if slow else self._read_timeout
        timeouts = {
            "connect": self._connect_timeout,
            "read": read_timeout,
            "write": read_timeout,
            "pool": read_timeout,
        }
        fields = [(b"host", self.address.authority.encode("ascii")), (b"connection", b"close"), *headers]
        request = httpx.Request(
            method,
            self._url,
            headers=fields,
            content=body or None,
            extensions={"timeout": timeouts, "target": target},
        )
        try:
            # httpx's timeout is for each read. This one bounds a body that arrives in many small pieces.
            async with asyncio.timeout(self._connect_timeout + read_timeout):
                return await self._receive(request)
        except (TimeoutError, httpx.TimeoutException) as error:
            return self._too_slow(error, read_timeout)
        except httpx.ConnectError as error:
            if _out_of_descriptors(error):
                return Failure(
                    FailureKind.DESCRIPTORS,
                    "This proxy has reached its limit of open files, so nothing was sent to IMDS; raise the limit "
                    "(LimitNOFILE=, ulimit -n).",
                    sent=False,
                )
            return Failure(
                FailureKind.UNREACHABLE,
                f"{self.address} cannot be reached ({_words(error)}). {self._question}",
                sent=False,
            )
        except httpx.NetworkError as error:
            return Failure(
                FailureKind.RESET,
                f"{self.address} closed the connection before its answer was complete ({_words(error)}); ask again.",
            )
        except httpx.HTTPError as error:
            # The error may quote what came, which may be a piece of a token. Its traceback refers back to it, and would
            # keep the connection and its buffer in memory until the garbage collector runs.
            for each in _chain(error):
                each.__traceback__ = None
            return self._unreadable()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _receive(self, request: httpx.Request) -> Response | Failure:
        response = await self._transport.handle_async_request(request)
        try:
            if not 200 <= response.status_code < 600 or any(
                _CONTROL.search(value) for _, value in response.headers.raw
            ):
                return self._unreadable()
            body = await self._receive_body(cast("AsyncIterable[bytes]", response.stream))
            if isinstance(body, Failure):
                return body
            answer = Response(response.status_code, to_client(response.headers.raw), body)
            return self._loop() if reports_loop(answer) else answer
        finally:
            await response.aclose()

    async def _receive_body(self, parts: AsyncIterable[bytes]) -> bytes | Failure:
        """Return a body, not decoded, or the failure if it, or all bodies received now, are too large."""
        body = bytearray()
        most = BODIES_AT_ONCE * self._max_body_bytes
        try:
            async for part in parts:
                body += part
                self._receiving += len(part)
                if len(body) > self._max_body_bytes:
                    return self._too_large(self._max_body_bytes)
                if self._receiving > most:
                    return self._too_large(most, " in several answers at once")
            return bytes(body)
        finally:
            self._receiving -= len(body)

    def _loop(self) -> Failure:
        """Return the failure for a loop, with the remedy: the redirect's exemption, or IMDSPROXY_UPSTREAM."""
        if self.address == IMDS and sys.platform != "win32":
            why = missing_exemption(own_user())
        else:
            why = (
                f"IMDSPROXY_UPSTREAM={self.address} leads back to this proxy itself, or into a loop behind it; "
                f"set it to {IMDS}"
            )
        return Failure(FailureKind.LOOP, f"{why[:1].upper()}{why[1:]}.", sent=False)

    @property
    def _question(self) -> str:
        if self.address.unix is not None:
            return "Does an imdsproxy run whose IMDSPROXY_UDS this is, and may this user open its socket?"
        return "Is this an Azure VM, and does IMDSPROXY_UPSTREAM name its metadata service?"

    def _unreadable(self) -> Failure:
        return Failure(
            FailureKind.UNREADABLE,
            f"{self.address} did not send a complete HTTP response. Is it the metadata service?",
        )

    def _too_large(self, most: int, where: str = "") -> Failure:
        return Failure(
            FailureKind.TOO_LARGE,
            f"{self.address} sent more than {most} bytes{where}; raise IMDSPROXY_MAX_BODY_BYTES if that is expected.",
        )

    def _too_slow(self, error: Exception, read_timeout: float) -> Failure:
        if isinstance(error, httpx.ConnectTimeout):
            return Failure(
                FailureKind.SILENT,
                f"{self.address} accepted no connection within {self._connect_timeout:g} s "
                f"(IMDSPROXY_CONNECT_TIMEOUT). {self._question}",
                sent=False,
            )
        return Failure(
            FailureKind.TIMEOUT,
            f"{self.address} did not answer within {read_timeout:g} s (IMDSPROXY_READ_TIMEOUT); ask again later.",
        )


def _out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, means that no descriptor is left (EMFILE, ENFILE)."""
    return any(isinstance(each, OSError) and each.errno in {errno.EMFILE, errno.ENFILE} for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
