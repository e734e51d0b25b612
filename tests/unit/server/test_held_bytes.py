"""The memory that all connections may hold together, and the weights."""

from __future__ import annotations

import tracemalloc

import pytest

from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target
from imdsproxy.server.held_bytes import SHARE, HeldBytes, weight_of_body, weight_of_field, weight_of_target


def test_move_beyond_the_pool_is_refused_and_changes_nothing() -> None:
    held = HeldBytes(100)
    assert held.move(0, 60)
    assert not held.move(0, 41)
    assert held.bytes == 60
    assert held.move(0, 40)
    assert held.move(60, 0)
    assert held.bytes == 40


def test_move_that_returns_bytes_is_never_refused() -> None:
    held = HeldBytes(100)
    held.bytes = 150
    assert held.move(50, 40)
    assert not held.move(40, 41)


def test_wait_behind_admits_a_bounded_number() -> None:
    held = HeldBytes(most_behind=2)
    assert [held.wait_behind() for _ in range(3)] == [True, True, False]
    held.go_on()
    assert [held.wait_behind() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "query",
    [
        b"x=" + b"a" * 60_000,
        b"x=" + b'"' * 60_000,
        b"x=%F0%9F%98%80" + b"a" * 60_000,
        b"x=%F0%9F%98%80" + b'"' * 60_000,
        b"&".join(b"%d=" % number for number in range(500)),
        b"&".join(b"%d=%s" % (number, b"a" * 100) for number in range(500)),
    ],
    ids=["plain", "escaped", "wide", "escaped and wide", "parameters", "long parameters"],
)
def test_weight_of_a_target_is_at_least_the_memory_of_its_reading(query: bytes) -> None:
    raw = b"/metadata/instance?" + query
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        reading = read_target(bytes(bytearray(raw)))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert isinstance(reading, Target)
    assert len(raw) + taken <= weight_of_target(raw)


def test_weight_of_fields_is_at_least_their_memory() -> None:
    for length in (0, 1, 20, 600):
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            fields = [(b"x-%d" % number, b"a" * (length + number % 2)) for number in range(100)]
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert taken <= sum(weight_of_field(*field) for field in fields) + 1024


def test_ordinary_request_fits_into_its_share() -> None:
    """The longest request that Azure's clients are known to send: a token with an assertion's worth of fields."""
    target = (
        b"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F"
        b"&client_id=12345678-1234-1234-1234-123456789012"
    )
    fields = [(b"x-ms-client-request-id", b"12345678-1234-1234-1234-123456789012")] * 10
    assert len(target) + weight_of_target(target) + sum(weight_of_field(*field) for field in fields) < SHARE


def test_weight_of_a_body_covers_collecting_it() -> None:
    assert weight_of_body(1000) == 2000
