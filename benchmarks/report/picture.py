"""The picture of a run: some of its figures and curves in panels, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.figures import DIRECT, SERVERS, Curve, Figure, Findings
from benchmarks.report.panels import Axes, Bar, Place, bars, legend, lines
from benchmarks.report.svg import FAINT, Drawing
from benchmarks.report.tables import written

_WIDTH = 980
_MARGIN = 12
_TOP = 96
_PANEL = (470, 244)
_GAP = 16

Panel = Callable[[Drawing, Place], None]


def draw(described: Mapping[str, str], findings: Findings) -> str:
    """Return the SVG of what was measured. A panel without measurements is left out."""
    panels = [panel for panel in _panels(findings) if panel is not None]
    wide, high = _PANEL
    rows = -(-len(panels) // 2)
    drawing = Drawing(_WIDTH, _TOP + rows * (high + _GAP) + _MARGIN, "What make bench measured")
    drawing.heading(_MARGIN + 16, 34, "imdsproxy beside other caches, one core each, load on another", 18)
    words = f"{described.get('date', '')} · {described.get('cpu', '')} · {described.get('beside', '')}"
    drawing.text(_MARGIN + 16, 56, words, fill=FAINT)
    legend(drawing, _MARGIN + 16, 82, _present(findings))
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        panel(drawing, Place(_MARGIN + column * (wide + _GAP), _TOP + row * (high + _GAP), wide, high))
    return drawing.render()


def _panels(findings: Findings) -> Sequence[Panel | None]:
    connections, entries = findings.curve("connections"), findings.curve("entries")
    return (
        _bars("repeated hits a second, 32 connections", findings.figure("hits_per_second")),
        _bars("hits a second, each with another head", findings.figure("differing_per_second")),
        _bars("hits a second, each over a new connection", findings.figure("ending_per_second")),
        _bars("… and with another head", findings.figure("ending_differing_per_second")),
        _rates("repeated hits a second", connections),
        _slowest("99 of 100 of them within … ms", connections),
        _rates("hits a second, over all entries in turn", entries),
        _bars("memory after all the hits above, MiB", _memory(findings)),
        _requests("cold storm: requests to IMDS (pale: 429)", findings),
        _times("cold storm: seconds to the last answer", findings),
    )


def _present(findings: Findings) -> list[str]:
    shown = [*(figure.measured for figure in findings.figures), *(curve.rate for curve in findings.curves)]
    return [server for server in SERVERS if any(server in each for each in shown)]


def _memory(findings: Findings) -> Figure | None:
    return findings.figure("memory_after_differing_mib")


def _bars(title: str, figure: Figure | None) -> Panel | None:
    shown = (
        []
        if figure is None
        else [
            Bar(name, figure.measured[name], written(figure.measured[name], figure.unit))
            for name in SERVERS
            if name in figure.measured and name != DIRECT
        ]
    )
    return (lambda drawing, place: bars(drawing, place, title, shown)) if shown else None


def _rates(title: str, curve: Curve | None) -> Panel | None:
    if curve is None:
        return None
    axes = Axes(title, curve.along)
    return lambda drawing, place: lines(drawing, place, axes, curve.points, curve.rate)


def _slowest(title: str, curve: Curve | None) -> Panel | None:
    if curve is None:
        return None
    axes = Axes(title, curve.along, logarithmic=True)
    return lambda drawing, place: lines(drawing, place, axes, curve.points, curve.p99_ms)


def _requests(title: str, findings: Findings) -> Panel | None:
    reached, refused = findings.figure("cold_reached_requests"), findings.figure("cold_refused_requests")
    if reached is None or refused is None:
        return None
    shown = [
        Bar(name, reached.measured[name], f"{reached.measured[name]:,.0f}", refused.measured[name])
        for name in SERVERS
        if name in reached.measured
    ]
    return lambda drawing, place: bars(drawing, place, title, shown)


def _times(title: str, findings: Findings) -> Panel | None:
    last, gave_up = findings.figure("cold_last_s"), findings.figure("cold_gave_up_clients")
    if last is None or gave_up is None:
        return None
    shown = []
    for name in SERVERS:
        if name in last.measured:
            lost = gave_up.measured[name]
            words = f"{last.measured[name]:.1f}" + (f", {lost:,.0f} had none" if lost else "")
            shown.append(Bar(name, last.measured[name], words))
    return lambda drawing, place: bars(drawing, place, title, shown)
