"""Answers to bytes that are not a request."""

from __future__ import annotations

import pytest

from imdsproxy.protocol.messages import Refusal
from imdsproxy.server import connection_refusals

REFUSALS = {name: value for name, value in vars(connection_refusals).items() if isinstance(value, Refusal)}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_states_its_reason_and_closes_the_connection(name: str) -> None:
    refusal = REFUSALS[name]
    answer = connection_refusals.written(refusal, (b"date", b"Fri, 27 Nov 2026 12:00:00 GMT"))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    assert status.startswith(b"HTTP/1.1 %d " % refusal.status)
    assert {b"connection: close", b"date: Fri, 27 Nov 2026 12:00:00 GMT", b"content-length: %d" % len(body)} <= {
        *fields
    }
    assert refusal.error.encode() in body
