"""The table and the JSON document, both headed by what was measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Unit

_LIBRARIES = ("uvicorn", "uvloop", "httptools", "httpx")
_COLUMNS = ("what", "measured", "beside it", "goal", "")
_MISSED = "missed"


def machine(command: str, pinned: str) -> dict[str, str]:
    """Describe what the figures hold for, taken before anything is measured."""
    described = {
        "command": command,
        "date": dt.datetime.now(dt.UTC).isoformat(" ", "minutes"),
        "cpu": _cpu(),
        "cores": f"{os.cpu_count() or '?'}; {pinned}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
    }
    if hasattr(os, "getloadavg"):
        described["load before"] = (
            f"{os.getloadavg()[0]:.2f} (average of one minute; much of it makes every figure worse)"
        )
    return described


def table(described: dict[str, str], figures: Sequence[Figure]) -> str:
    """Write the aligned table for a terminal."""
    width = max(map(len, described))
    lines = [f"{name:<{width}}  {text}" for name, text in described.items()]
    rows = _aligned([_COLUMNS, *map(_row, figures)])
    rule = "-" * max(map(len, rows))
    notes = [f"{figure.what}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([*lines, "", rows[0], rule, *rows[1:], rule, *notes])


def markdown(described: dict[str, str], figures: Sequence[Figure]) -> str:
    """Write the same as Markdown."""
    lines = [f"- {name}: {text}" for name, text in described.items()]
    rows = [f"| {' | '.join(cells)} |" for cells in _padded([_COLUMNS, *map(_row, figures)])]
    rule = "".join("-" if character != "|" else "|" for character in rows[0])
    notes = [f"- {figure.what}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([*lines, "", rows[0], rule, *rows[1:], "", *notes])


def document(described: dict[str, str], figures: Sequence[Figure], seconds: float) -> dict[str, Any]:
    """Give everything as one JSON object; `figures` by their names."""
    listed = {figure.name: {**asdict(figure), "missed": figure.missed} for figure in figures}
    return {"machine": described, "seconds": seconds, "figures": listed}


def _row(figure: Figure) -> tuple[str, ...]:
    beside = "" if figure.beside is None else f"{_written(figure.beside, figure.unit)}, {figure.beside_what}"
    goal = "" if figure.goal is None else f"{figure.bound} {_written(figure.goal, figure.unit, exact=True)}"
    measured = "left out" if figure.measured is None else _written(figure.measured, figure.unit)
    return (figure.what, measured, beside, goal, _MISSED if figure.missed else "")


def _written(value: float, unit: Unit, *, exact: bool = False) -> str:
    """Write a value with as many digits as it bears, a goal with as many as it has."""
    match unit:
        case "/s":
            return f"{value:,.0f}/s"
        case "requests":
            return f"{value:,.0f}"
        case _:
            digits = "g" if exact else {"ms": ".3f", "s": ".2f", "MiB": ".1f"}[unit]
            return f"{value:{digits}} {unit}"


def _padded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["  ".join(cells).rstrip() for cells in _padded(rows)]


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
