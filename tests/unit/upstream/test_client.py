"""Errors of the HTTP client become failures with words for a person."""

from __future__ import annotations

import asyncio
import errno
import os

import httpx
import pytest

from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Failure, FailureKind
from imdsproxy.upstream.client import UpstreamClient


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EMFILE, FailureKind.DESCRIPTORS, "may not open another file, so IMDS was not asked"),
        (errno.ENFILE, FailureKind.DESCRIPTORS, "may not open another file, so IMDS was not asked"),
        (errno.ECONNREFUSED, FailureKind.UNREACHABLE, "cannot be reached"),
    ],
)
def test_connect_error_tells_the_proxys_own_shortage_from_an_absent_imds(
    number: int, kind: FailureKind, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = UpstreamClient(Address("127.0.0.1", 9))

    async def fail(_request: httpx.Request) -> httpx.Response:
        error = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = OSError(number, os.strerror(number))
        raise error

    monkeypatch.setattr(client._transport, "handle_async_request", fail)
    failure = asyncio.run(client.send("GET", b"/metadata/versions", ()))
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert not failure.sent
    assert words in failure.description
