"""Targets and requests that the tests of serving share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.kit import (
    Answer,
    ProxyProcess,
    cache_status,
)

Start = Callable[..., AbstractContextManager[ProxyProcess]]
"""Starts another proxy before the same emulator."""

ATTESTED = "/metadata/attested/document?api-version=2021-02-01"
INFO = "/metadata/identity/info?api-version=2018-02-01"
LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
LOAD_BALANCER = "/metadata/loadbalancer?api-version=2021-02-01"
PLATFORM = "/metadata/identity/getplatformmetadata?cred-api-version=2.0"
REPROVISION = "/metadata/reprovisiondata?api-version=2019-06-01"

NO_HEADER_IDENTITY = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
NO_HEADER_OTHER = b'{ "error": "Bad request: . Required metadata header not specified" }'


def assert_own(answer: Answer, status: int, detail: str) -> None:
    """Assert that this is the proxy's own answer: JSON in IMDS's form, and the reason in one word."""
    assert answer.status == status, answer
    assert cache_status(answer) == {"detail": detail}
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    document = json.loads(answer.body)
    assert list(document) == ["error", "error_description"]
    assert all(document.values())


def at_once(port: int, targets: list[str]) -> list[Answer]:
    """Ask for all targets at the same time, each over a connection of its own; answers in the targets' order."""

    async def one(target: str) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            fields = "Host: 127.0.0.1\r\nMetadata: true\r\nConnection: close\r\n"
            writer.write(f"GET {target} HTTP/1.1\r\n{fields}\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        line, *lines = head.decode("latin-1").split("\r\n")
        pairs = (field.partition(": ") for field in lines)
        return Answer(int(line.split()[1]), {name.lower(): value for name, _, value in pairs}, body)

    async def all_of_them() -> list[Answer]:
        async with asyncio.timeout(60):
            return list(await asyncio.gather(*map(one, targets)))

    return asyncio.run(all_of_them())
