"""What it costs to look up the client of a new connection."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.effort import Effort
from benchmarks.figures import OURS, BenchmarkError, Figure
from benchmarks.servers.bench import Bench
from imdsproxy.peers.lookup import PeerLookup

_IN_A_ROUND = 200


def clients(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure the lookup of clients over TCP and at a Unix socket, in this process and without a proxy."""
    del bench
    if sys.platform != "linux":
        raise BenchmarkError("users are looked up on Linux only")
    lookup = PeerLookup(programs=False)  # they are found only for rules and the access log
    figures: list[Figure] = []
    rounds = 20 * max(1, effort.miss_rounds)
    for name, words, family in (
        ("tcp", "over TCP on this machine", socket.AF_INET),
        ("unix", "at a Unix socket", socket.AF_UNIX),
    ):
        with _accepted(family) as (connection, address):
            if lookup.find(connection, address).user is None:
                raise BenchmarkError(f"the user {words} is unknown: {lookup.find(connection, address).unknown}")
            fastest = min(_seconds(partial(lookup.find, connection, address)) for _ in range(rounds))
        figures.append(
            Figure(
                name=f"lookup_{name}_ms",
                what=f"looking up the client of a connection {words}",
                unit="ms",
                measured={OURS: fastest * 1000},
                note="Processor time, the fastest of many rounds. At most once a connection, never for a fast hit.",
            )
        )
    lookup.close()
    return figures


def _seconds(look: Callable[[], object]) -> float:
    """Return the processor time of one call. Other processes of the machine do not count."""
    began = time.process_time()
    for _ in range(_IN_A_ROUND):
        look()
    return (time.process_time() - began) / _IN_A_ROUND


@contextmanager
def _accepted(family: socket.AddressFamily) -> Iterator[tuple[socket.SocketType, tuple[str, int] | None]]:
    if family == socket.AF_UNIX:
        client, accepted = socket.socketpair(family)
        address = None
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            accepted, address = listening.accept()
    with client:
        # As the acceptor has it, without the class on top.
        plain = socket.SocketType(int(family), int(socket.SOCK_STREAM), 0, accepted.detach())
        try:
            yield plain, address
        finally:
            plain.close()
