"""Hits per second if each request has a connection of its own, as commands, agents and most libraries send them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.effort import Effort
from benchmarks.figures import BARE, Figure
from benchmarks.loads import load
from benchmarks.loads.shapes import CONNECTIONS, ENDING, ENDING_DIFFERING, Shape
from benchmarks.measures import sustained
from benchmarks.servers.arrivals import Arrivals, check_none
from benchmarks.servers.bench import Bench, ask

_KINDS: Sequence[tuple[str, Shape, str]] = (
    ("ending", ENDING, "hits, each over a new connection"),
    ("ending_differing", ENDING_DIFFERING, "hits, each over a new connection and with another head"),
)


def hits(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure all servers in turn on hits that end their connection, repeated ones and those whose heads differ."""
    chosen = load.choose()
    figures: list[Figure] = []
    with bench.emulator() as emulator, bench.all_closing(emulator) as servers:
        size = len(ask(servers[0].running).body)
        arrivals = Arrivals(emulator)
        for name, shape, words in _KINDS:
            by_server = sustained.rounds(chosen, shape, servers, effort)
            how = f"{chosen.words}; bodies of {size:,} bytes; {BARE} closes after one write."
            figures += sustained.figures(name, words, f"{words}, {CONNECTIONS} at a time", by_server, how)
        check_none(arrivals)
    return figures
