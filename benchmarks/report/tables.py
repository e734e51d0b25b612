"""The tables, for a terminal and as Markdown, and the JSON document, each headed by the conditions of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.figures import SERVERS, Curve, Figure, Findings, Goal, Unit

Table = list[list[str]]

_MISSED = "missed"
_LEGEND = "In brackets: imdsproxy's figure divided by this one."
_DIGITS: Mapping[Unit, str] = {
    "/s": ",.0f",
    "requests": ",.0f",
    "clients": ",.0f",
    "ms": ".3f",
    "s": ".2f",
    "MiB": ".1f",
    "x": ".2f",
}


def text(described: Mapping[str, str], findings: Findings) -> str:
    """Return the report for a terminal."""
    width = max(map(len, described))
    lines = [f"{name:<{width}}  {words}" for name, words in described.items()]
    for title, table in _tables(findings):
        rows = _aligned(table)
        rule = "-" * max(map(len, rows))
        lines += ["", title, "", rows[0], rule, *rows[1:], rule]
    return "\n".join([*lines, "", *_notes(findings)])


def markdown(described: Mapping[str, str], findings: Findings) -> str:
    """Return the report as Markdown."""
    lines = [f"- {name}: {words}" for name, words in described.items()]
    for title, table in _tables(findings):
        rows = [f"| {' | '.join(cells)} |" for cells in _padded(table)]
        rule = "".join("-" if character != "|" else "|" for character in rows[0])
        lines += ["", title, "", rows[0], rule, *rows[1:]]
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(findings))])


def document(described: Mapping[str, str], findings: Findings, seconds: float) -> dict[str, Any]:
    """Return the report as one JSON object, with figures and curves by name."""
    return {
        "machine": dict(described),
        "seconds": round(seconds, 1),
        "figures": {figure.name: asdict(figure) for figure in findings.figures},
        "curves": {curve.name: asdict(curve) for curve in findings.curves},
        "goals": [{**asdict(goal), "missed": goal.missed} for goal in findings.goals],
        "left_out": dict(findings.left_out),
    }


def written(value: float, unit: Unit) -> str:
    """Return a value with the digits of its unit, without the unit."""
    return f"{value:{_DIGITS[unit]}}"


def _tables(findings: Findings) -> list[tuple[str, Table]]:
    tables = []
    if findings.figures:
        tables.append((_LEGEND, _figures(findings.figures)))
    for curve in findings.curves:
        tables += [
            (f"{curve.what}: a second (99 of 100 within so many ms)", _rates(curve)),
            (f"{curve.what}: the longest response of all rounds [ms]", _longest(curve)),
            (f"{curve.what}: processor time for a thousand [ms]", _processor(curve)),
        ]
    if findings.goals:
        tables.append(("Goals", [["what", "measured", "goal", ""], *map(_goal, findings.goals)]))
    return tables


def _figures(figures: Sequence[Figure]) -> Table:
    servers = [server for server in SERVERS if any(server in figure.measured for figure in figures)]
    rows = [["what", *servers]]
    for figure in figures:
        unit = f" [{figure.unit}]" if figure.unit in ("ms", "s", "MiB") else ""
        rows.append([figure.what + unit, *(_cell(figure, server) for server in servers)])
    return rows


def _cell(figure: Figure, server: str) -> str:
    value = figure.measured.get(server)
    if value is None:
        return ""
    ratio = figure.ratio(server)
    return written(value, figure.unit) + ("" if ratio is None else f" ({_ratio(ratio)})")


def _ratio(ratio: float) -> str:
    """Return a ratio with two decimals below 10, otherwise whole."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def _rates(curve: Curve) -> Table:
    return _curve(curve, lambda server, at: f"{curve.rate[server][at]:,.0f} ({curve.p99_ms[server][at]:.2f})")


def _longest(curve: Curve) -> Table:
    return _curve(curve, lambda server, at: f"{curve.longest_ms[server][at]:.1f}")


def _processor(curve: Curve) -> Table:
    times = curve.processor_ms
    return _curve(curve, lambda server, at: f"{times[server][at]:.3f}" if server in times else "")


def _curve(curve: Curve, cell: Callable[[str, int], str]) -> Table:
    servers = [server for server in SERVERS if server in curve.rate]
    rows = [[curve.along, *servers]]
    return rows + [[f"{point:,}", *(cell(each, at) for each in servers)] for at, point in enumerate(curve.points)]


def _goal(goal: Goal) -> list[str]:
    unit = "" if goal.unit in ("requests", "clients") else f" {goal.unit}"
    aim = f"{goal.bound} {goal.goal:,g}{unit}"
    return [goal.what, written(goal.measured, goal.unit) + unit, aim, _MISSED if goal.missed else "reached"]


def _notes(findings: Findings) -> list[str]:
    noted: Sequence[Figure | Curve] = [*findings.figures, *findings.curves]
    notes = [f"{each.what}: {each.note}" for each in noted if each.note]
    return [*notes, *(f"Left out: {name}: {why}." for name, why in findings.left_out.items())]


def _padded(rows: Table) -> Table:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]


def _aligned(rows: Table) -> list[str]:
    return ["  ".join(cells).rstrip() for cells in _padded(rows)]
