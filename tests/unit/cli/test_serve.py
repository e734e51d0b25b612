"""The number of connections of `serve` within a memory limit."""

from __future__ import annotations

import logging

import pytest

from imdsproxy.cli import serve
from imdsproxy.config import Config
from imdsproxy.server.memory_bound import MOST_CONNECTIONS

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit", "connections", "warned"),
    [(None, MOST_CONNECTIONS, False), (160 * MIB, 920, False), (100 * MIB, 64, True)],
)
def test_limit_of_memory_that_is_too_small_is_reported(
    limit: int | None,
    connections: int,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(serve, "memory_limit", lambda: limit)
    with caplog.at_level(logging.WARNING, "imdsproxy.cli.serve"):
        assert serve._connections(Config()) == connections
    assert [record.getMessage().partition(" is too low")[0] for record in caplog.records] == (
        ["the memory limit of this container or unit"] if warned else []
    )
