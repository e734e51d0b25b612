"""How the layouts of one node compare with more and more pods: the tables of `docs/scaling.md`, in virtual time.

    python -m benchmarks.scaling                           print the tables
    python -m benchmarks.scaling --into docs/scaling.md    put them in the place of those that are there
    python -m benchmarks.scaling --pods 10                 print the lines of ten pods only, which takes seconds

It needs the checkout (`tests/virtual.py` owns the time). The same core gives the same figures on every machine.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scaling_cases import Case, Result, Workload, lasted, simulate
from benchmarks.scaling_node import Layout

_PROCESSES = 2
_SIZES = (10, 100, 1000)
# A sidecar that waits on a budget file looks four times a second, which a thousand make long to simulate.
_LEFT_OUT = {
    (Workload.MIX, Layout.OWN, 1000),
    (Workload.MIX, Layout.FILE, 1000),
    (Workload.STEADY, Layout.OWN, 1000),
    (Workload.STEADY, Layout.FILE, 1000),
    (Workload.STEADY, Layout.CHAINED, 1000),
}

Column = tuple[str, Callable[[Result], str]]


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f} s"


def _errors(result: Result) -> str:
    return ", ".join(f"{count:,} x {status}" for status, count in result.errors.items()) or "0"


_WHO: Sequence[Column] = (
    ("pods", lambda result: _number(result.case.pods)),
    ("layout", lambda result: result.case.layout.value),
)
_WHAT: Sequence[Column] = (*_WHO, ("with", lambda result: result.case.note))
_IMDS: Sequence[Column] = (
    ("to IMDS", lambda result: _number(result.sent)),
    ("most in 1 s", lambda result: _number(result.most)),
    ("429 by IMDS", lambda result: _number(result.refused)),
    ("errors", _errors),
)
_ENDS: Sequence[Column] = (
    ("half after", lambda result: _seconds(result.half)),
    ("all after", lambda result: _seconds(None if result.unserved else result.last)),
    ("unserved", lambda result: _number(result.unserved)),
)
_CALLS: Sequence[Column] = (("calls", lambda result: _number(result.calls)),)
_AT_ONCE = (*_WHO, *_CALLS, *_IMDS, *_ENDS)
_AT_ONCE_WITH = (*_WHAT, *_CALLS, *_IMDS, *_ENDS)
_POLLED: Sequence[Column] = (
    *_CALLS,
    ("to IMDS in 1 s", lambda result: f"{result.sent / lasted(result.case):.2f}"),
    *_IMDS[1:],
    ("half within", lambda result: _seconds(result.half, 2)),
    ("99 % within", lambda result: _seconds(result.last, 2)),
)
_STEADY = (*_WHO, *_POLLED)
_RENEWAL = (("targets", lambda result: _number(result.case.targets)), *_POLLED)
_ARRIVAL = (*_WHO, ("asked", lambda result: f"{result.case.rate:g}"), *_POLLED)
_RESTARTS: Sequence[Column] = (("restarts", lambda result: _number(result.restarts)),)
_STORM_ENDS: Sequence[Column] = tuple(
    (name, cell) for name, (_, cell) in zip(("half up", "all up", "not up"), _ENDS, strict=True)
)
_STORM = (*_WHO, *_IMDS, *_RESTARTS, *_STORM_ENDS)
_STORM_WITH = (*_WHAT, *_IMDS, *_RESTARTS, *_STORM_ENDS)


@dataclass(frozen=True, slots=True)
class Table:
    """Cases and what is told of each."""

    title: str
    columns: Sequence[Column]
    cases: Sequence[Case]

    def of(self, pods: int) -> Table:
        """Give the lines of so many pods only."""
        return Table(self.title, self.columns, [case for case in self.cases if case.pods == pods])

    def lines(self, results: Mapping[Case, Result]) -> Iterator[str]:
        """Write it as Markdown."""
        yield f"| {' | '.join(name for name, _ in self.columns)} |"
        yield "|" + "|".join("---" for _ in self.columns) + "|"
        for case in self.cases:
            yield f"| {' | '.join(cell(results[case]) for _, cell in self.columns)} |"


def _layouts(workload: Workload, sizes: Sequence[int] = _SIZES) -> list[Case]:
    return [
        Case(workload=workload, layout=layout, pods=pods)
        for pods in sizes
        for layout in Layout
        if (workload, layout, pods) not in _LEFT_OUT
    ]


def _waits() -> list[Case]:
    daemon, chained = Layout.DAEMON, Layout.CHAINED
    own = Workload.OWN
    return [
        Case(workload=own, layout=daemon, pods=100, max_wait=30, note="`MAX_WAIT=30`"),
        Case(workload=own, layout=chained, pods=100, max_wait=30, note="`MAX_WAIT=30`"),
        Case(workload=own, layout=Layout.FILE, pods=100, max_wait=30, note="`MAX_WAIT=30`"),
        Case(workload=own, layout=daemon, pods=1000, max_wait=60, note="`MAX_WAIT=60`"),
        Case(workload=own, layout=daemon, pods=1000, max_wait=240, note="`MAX_WAIT=240`"),
        Case(workload=own, layout=daemon, pods=1000, identity_apart=True, note="`IDENTITY_BUDGET_REQUESTS=20`"),
        Case(
            workload=own,
            layout=daemon,
            pods=1000,
            identity_apart=True,
            max_wait=60,
            note="`IDENTITY_BUDGET_REQUESTS=20 MAX_WAIT=60`",
        ),
    ]


def _storms() -> list[Case]:
    storm, daemon, chained, pods = Workload.STORM, Layout.DAEMON, Layout.CHAINED, 1000
    return [
        Case(workload=storm, layout=daemon, pods=pods, warmup=True, note="`WARMUP` of all that is asked"),
        Case(workload=storm, layout=daemon, pods=pods, beside=True, note="one call a second past it"),
        Case(
            workload=storm,
            layout=daemon,
            pods=pods,
            beside=True,
            budget_requests=4,
            note="the same, `BUDGET_REQUESTS=4`",
        ),
        Case(workload=storm, layout=daemon, pods=pods, away_for=60, note="410 for the first 60 s"),
        Case(workload=storm, layout=chained, pods=pods, away_for=60, note="the same"),
    ]


def _arrivals() -> list[Case]:
    return [
        Case(workload=Workload.ARRIVAL, layout=layout, pods=100, rate=rate)
        for rate in (3.5, 4.6)
        for layout in (Layout.FILE, Layout.DAEMON)
    ]


def _renewals() -> list[Case]:
    return [
        Case(workload=Workload.RENEWAL, layout=Layout.DAEMON, pods=1, targets=targets)
        for targets in (285, 400, 560, 650)
    ]


TABLES: Mapping[str, Table] = {
    "renewal": Table("Leaves of the instance document, each asked for every 10 s", _RENEWAL, _renewals()),
    "same": Table("Every pod asks for the instance document and one shared token", _AT_ONCE, _layouts(Workload.SAME)),
    "own": Table("Every pod asks for a token of its own identity", _AT_ONCE, _layouts(Workload.OWN, (100, 1000))),
    "mix": Table(
        "Every pod asks for the instance document and five tokens", _AT_ONCE, _layouts(Workload.MIX, (100, 1000))
    ),
    "waits": Table("A token each, with other settings", _AT_ONCE_WITH, _waits()),
    "steady": Table("Ten minutes of polling, scheduled events every 15 s", _STEADY, _layouts(Workload.STEADY)),
    "fast": Table(
        "Ten minutes of polling, scheduled events every second", _STEADY, _layouts(Workload.STEADY_FAST, (10,))
    ),
    "arrival": Table("Ten minutes of new targets at random moments", _ARRIVAL, _arrivals()),
    "storm": Table("The start after a reboot", _STORM, _layouts(Workload.STORM)),
    "storms": Table("The same, with other settings and in trouble", _STORM_WITH, _storms()),
}


def main(arguments: Sequence[str]) -> int:
    """Simulate; prints the tables, or puts them into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Simulates a node's layouts.", allow_abbrev=False
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--pods", type=int, choices=_SIZES, help="only the lines of so many pods")
    chosen.add_argument("--into", type=Path, metavar="FILE", help="put each table where FILE has it")
    options = parser.parse_args(arguments)
    tables = {name: table.of(options.pods) for name, table in TABLES.items()} if options.pods else TABLES
    began = time.monotonic()
    # The longest first, so that no process is left with one of these alone.
    cases = sorted({case for table in tables.values() for case in table.cases}, key=_effort, reverse=True)
    with multiprocessing.get_context("spawn").Pool(_PROCESSES, _begin) as pool:
        results = {result.case: result for result in pool.imap_unordered(_collected, cases)}
        pool.close()  # at the block's end they would be killed, whatever they are about to write
        pool.join()
    sys.stderr.write(f"{len(cases)} cases in {time.monotonic() - began:.0f} s\n")
    written = {name: "\n".join(table.lines(results)) for name, table in tables.items() if table.cases}
    if options.into is None:
        print("\n\n".join(f"{tables[name].title}\n\n{lines}" for name, lines in written.items()))
    else:
        text = options.into.read_text(encoding="utf-8")
        for name, lines in written.items():
            text = place(text, name, lines)
        options.into.write_text(text, encoding="utf-8")
    return 0


def place(text: str, name: str, lines: str) -> str:
    """Put a table behind its mark, instead of the one that is there."""
    mark = f"<!-- {name} -->\n"
    head, found, rest = text.partition(mark)
    if not found:
        raise ValueError(f"the file has no {mark.strip()}")
    after = re.sub(r"(?:[|].*\n)*", "", rest, count=1)
    return f"{head}{mark}{lines}\n{after}"


def _effort(case: Case) -> tuple[bool, int]:
    return case.layout in {Layout.OWN, Layout.FILE}, case.pods


def _begin() -> None:
    # What a proxy would log of so many 429s is not looked at; and what is thrown away waits for the end of a case.
    logging.getLogger("imdsproxy").addHandler(logging.NullHandler())
    gc.disable()


def _collected(case: Case) -> Result:
    result = simulate(case)
    gc.collect()
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
