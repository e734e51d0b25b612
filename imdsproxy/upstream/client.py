"""The client for IMDS. It turns every way in which a request can fail into a `Failure`."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sys
from collections.abc import AsyncIterable, Iterator

from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.cache_status import reports_loop
from imdsproxy.protocol.messages import Failure, FailureKind, Headers, Response
from imdsproxy.upstream.exchange import Exchange, ExchangeError, connect
from imdsproxy.upstream.headers import to_client
from imdsproxy.upstream.loop_advice import missing_exemption, own_user

BODIES_AT_ONCE = 8
"""The number of bodies of the longest size that may be received at once."""
SLOW_READ_TIMEOUT = 130.0
"""Seconds: the first scheduled-events request may take two minutes (Microsoft's scheduled-events page)."""

_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
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
        self._fields = ((b"host", address.authority.encode("ascii")), (b"connection", b"close"))

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Send one request with exactly this target, and return the complete answer or the failure.

        Each request has a connection of its own. At five requests a second reuse would save nothing, and bytes that a
        broken upstream sends behind one answer could be taken for the answer to the next request.
        """
        read_timeout = max(SLOW_READ_TIMEOUT, self._read_timeout) if slow else self._read_timeout
        try:
            async with asyncio.timeout(self._connect_timeout):
                exchange = await connect(self.address)
        except TimeoutError:
            return self._not_accepted()
        except OSError as error:
            return self._not_connected(error)
        try:
            async with asyncio.timeout(read_timeout):
                exchange.send(method, target, (*self._fields, *headers), body)
                return await self._receive(exchange)
        except TimeoutError:
            return self._too_slow(read_timeout)
        except OSError as error:
            _release(error)
            return Failure(
                FailureKind.RESET,
                f"{self.address} closed the connection before its answer was complete ({_words(error)}); ask again.",
            )
        except ExchangeError as error:  # its text may quote a piece of a token
            _release(error)
            return self._unreadable()
        finally:
            exchange.close()

    async def _receive(self, exchange: Exchange) -> Response | Failure:
        status, fields = await exchange.head()
        if not 200 <= status < 600 or any(_CONTROL.search(value) for _, value in fields):
            return self._unreadable()
        body = await self._receive_body(exchange)
        if isinstance(body, Failure):
            return body
        answer = Response(status, to_client(fields), body)
        return self._loop() if reports_loop(answer) else answer

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

    def _not_accepted(self) -> Failure:
        return Failure(
            FailureKind.SILENT,
            f"{self.address} accepted no connection within {self._connect_timeout:g} s "
            f"(IMDSPROXY_CONNECT_TIMEOUT). {self._question}",
            sent=False,
        )

    def _not_connected(self, error: OSError) -> Failure:
        if any(isinstance(each, OSError) and each.errno in _NO_DESCRIPTOR for each in _chain(error)):
            return Failure(
                FailureKind.DESCRIPTORS,
                "This proxy has reached its limit of open files, so nothing was sent to IMDS; raise the limit "
                "(LimitNOFILE=, ulimit -n).",
                sent=False,
            )
        return Failure(
            FailureKind.UNREACHABLE, f"{self.address} cannot be reached ({_words(error)}). {self._question}", sent=False
        )

    def _too_slow(self, read_timeout: float) -> Failure:
        return Failure(
            FailureKind.TIMEOUT,
            f"{self.address} did not answer within {read_timeout:g} s (IMDSPROXY_READ_TIMEOUT); ask again later.",
        )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _release(error: Exception) -> None:
    """Drop tracebacks. They refer back to the error, and keep what was read until the garbage collector runs."""
    for each in _chain(error):
        each.__traceback__ = None


def _words(error: OSError) -> str:
    """Return the system's words for an error. A failed search for a name has a number below 0, and words of its own."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
