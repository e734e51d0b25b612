"""The tables of `docs/scaling.md`: their columns, and the cases that are their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.scaling.cases import Case, Result, Workload, polling_seconds
from benchmarks.scaling.node import Layout

SIZES = (10, 100, 1000)
# These take too long to simulate: a sidecar that waits on a budget file reads it four times a second.
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


_PODS_AND_LAYOUT: Sequence[Column] = (
    ("pods", lambda result: _number(result.case.pods)),
    ("layout", lambda result: result.case.layout.value),
)
_WITH_NOTE: Sequence[Column] = (*_PODS_AND_LAYOUT, ("with", lambda result: result.case.note))
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
_AT_ONCE = (*_PODS_AND_LAYOUT, *_CALLS, *_IMDS, *_ENDS)
_AT_ONCE_WITH = (*_WITH_NOTE, *_CALLS, *_IMDS, *_ENDS)
_POLLED: Sequence[Column] = (
    *_CALLS,
    ("to IMDS in 1 s", lambda result: f"{result.sent / polling_seconds(result.case):.2f}"),
    *_IMDS[1:],
    ("half within", lambda result: _seconds(result.half, 2)),
    ("99 % within", lambda result: _seconds(result.last, 2)),
)
_STEADY = (*_PODS_AND_LAYOUT, *_POLLED)
_RENEWAL = (("targets", lambda result: _number(result.case.targets)), *_POLLED)
_ARRIVAL = (*_PODS_AND_LAYOUT, ("asked", lambda result: f"{result.case.rate:g}"), *_POLLED)
_RESTARTS: Sequence[Column] = (("restarts", lambda result: _number(result.restarts)),)
_STORM_ENDS: Sequence[Column] = tuple(
    (name, cell) for name, (_, cell) in zip(("half up", "all up", "not up"), _ENDS, strict=True)
)
_STORM = (*_PODS_AND_LAYOUT, *_IMDS, *_RESTARTS, *_STORM_ENDS)
_STORM_WITH = (*_WITH_NOTE, *_IMDS, *_RESTARTS, *_STORM_ENDS)


@dataclass(frozen=True, slots=True)
class Table:
    """The cases of one table, and its columns."""

    title: str
    columns: Sequence[Column]
    cases: Sequence[Case]

    def of(self, pods: int) -> Table:
        """Return the table with only the rows of so many pods."""
        return Table(self.title, self.columns, [case for case in self.cases if case.pods == pods])

    def lines(self, results: Mapping[Case, Result]) -> Iterator[str]:
        """Yield the lines of the table in Markdown."""
        yield f"| {' | '.join(name for name, _ in self.columns)} |"
        yield "|" + "|".join("---" for _ in self.columns) + "|"
        for case in self.cases:
            yield f"| {' | '.join(cell(results[case]) for _, cell in self.columns)} |"


def _layouts(workload: Workload, sizes: Sequence[int] = SIZES) -> list[Case]:
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
