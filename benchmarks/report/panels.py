"""The panels of the picture: bars for a figure, lines for a curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import BARE, DIRECT, HAPROXY, NGINX, OURS, PLAIN, SERVERS, VARNISH
from benchmarks.report.svg import FAINT, GRID, Drawing, Scale, decades, short, ticks, width

COLOURS: Mapping[str, str] = {
    OURS: "#0b5fc0",
    NGINX: "#1a7f4b",
    HAPROXY: "#c4620f",
    VARNISH: "#8b3fb8",
    BARE: "#6e7781",
    PLAIN: "#a58b4a",
    DIRECT: "#b3261e",
}

_HEAD = 34
_FOOT = 40
_NAME = 96
_SIDE = 16
_AXIS = 46
_SMALL = 11


@dataclass(frozen=True, slots=True)
class Place:
    """The position and the size of a panel."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `words` follow it; the last part of it, `light` long, is drawn paler."""

    name: str
    value: float
    words: str
    light: float = 0.0


def bars(drawing: Drawing, place: Place, title: str, values: Sequence[Bar]) -> None:
    """Draw a bar for each server, from 0, followed by its words."""
    drawing.heading(place.x + _SIDE, place.y + 20, title)
    left = place.x + _SIDE + _NAME
    room = max(width(bar.words, _SMALL) for bar in values)
    scale = Scale(0, max(bar.value for bar in values) or 1, left, place.x + place.width - _SIDE - 6 - room)
    pitch = min(32.0, (place.height - _HEAD - 14) / len(values))
    for number, bar in enumerate(values):
        top = place.y + _HEAD + number * pitch
        middle = top + pitch / 2 + 4
        end = scale(bar.value)
        whole = scale(bar.value - bar.light)
        drawing.text(left - 8, middle, bar.name, anchor="end")
        drawing.rectangle(left, top + 3, max(1.0, whole - left), pitch - 6, COLOURS[bar.name])
        if bar.light:
            drawing.rectangle(whole, top + 3, end - whole, pitch - 6, COLOURS[bar.name] + "59")
        drawing.text(max(end, left + 1) + 6, middle, bar.words, size=_SMALL, fill=FAINT)


@dataclass(frozen=True, slots=True)
class Axes:
    """The title and the axes of a panel of lines."""

    title: str
    along: str
    logarithmic: bool = False


def lines(
    drawing: Drawing, place: Place, axes: Axes, points: Sequence[int], series: Mapping[str, Sequence[float]]
) -> None:
    """Draw a line for each server over points on a logarithmic axis."""
    drawing.heading(place.x + _SIDE, place.y + 20, axes.title)
    left, right = place.x + _SIDE + _AXIS, place.x + place.width - _SIDE - 8
    top, bottom = place.y + _HEAD + 8, place.y + place.height - _FOOT
    values = [value for line in series.values() for value in line if value > 0] or [1.0]
    marks = decades(min(values), max(values)) if axes.logarithmic else ticks(max(values))
    up = Scale(marks[0], marks[-1], bottom, top, axes.logarithmic)
    along = Scale(points[0], points[-1], left, right, logarithmic=True)
    for mark in marks:
        drawing.line([(left, up(mark)), (right, up(mark))], GRID)
        drawing.text(left - 8, up(mark) + 4, short(mark), size=_SMALL, anchor="end", fill=FAINT)
    for point in _apart(points, along):
        drawing.text(along(point), bottom + 16, f"{point:,}", size=_SMALL, anchor="middle", fill=FAINT)
    drawing.text((left + right) / 2, bottom + 32, axes.along, size=_SMALL, anchor="middle", fill=FAINT)
    for name in reversed([server for server in SERVERS if server in series]):
        places = [(along(point), up(value)) for point, value in zip(points, series[name], strict=True)]
        drawing.line(places, COLOURS[name], 2.5 if name == OURS else 1.5)
        for x, y in places:
            drawing.dot(x, y, 3 if name == OURS else 2.2, COLOURS[name])


def legend(drawing: Drawing, x: float, y: float, names: Sequence[str]) -> None:
    """Draw the colour and the name of each server in one row."""
    for name in names:
        drawing.rectangle(x, y - 10, 12, 12, COLOURS[name])
        drawing.text(x + 18, y, name)
        x += 18 + width(name, 12) + 24


def _apart(points: Sequence[int], along: Scale) -> list[int]:
    """Return the points whose labels do not touch, always with the first and the last."""
    kept: list[int] = []
    last = math.inf
    for point in reversed(points):
        half = width(f"{point:,}", _SMALL) / 2 + 4
        first = point == points[0]
        if along(point) + half <= last:
            kept.append(point)
            last = along(point) - half
        elif first and kept:
            kept[-1] = point
    return kept
