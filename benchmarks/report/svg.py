"""The part of SVG that the picture needs: scales, and elements as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK = "#1f2328"
FAINT = "#59636e"
GRID = "#d8dee4"
# The width of a letter as a share of its size: above the mean of common fonts.
_LETTER = 0.56


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values between `low` and `high` to positions between `start` and `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value, clamped to the scale."""
        low, high, at = (self._projected(each) for each in (self.low, self.high, min(max(value, self.low), self.high)))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _projected(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Return about `wanted` round values from 0 up to at least the highest."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def decades(lowest: float, highest: float) -> list[float]:
    """Return the powers of ten that enclose the lowest and the highest value."""
    first, last = math.floor(math.log10(lowest) + 1e-9), math.ceil(math.log10(highest) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """Return a value for an axis: `150k`, `1.5`, `0.1`."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def width(text: str, size: float) -> float:
    """Return the approximate width of a text."""
    return len(text) * size * _LETTER


@dataclass(slots=True)
class Drawing:
    """The elements of a drawing, on a light ground of its own so that dark pages can show it."""

    width: int
    height: int
    title: str
    _elements: list[str] = field(default_factory=list)

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Add a filled rectangle."""
        self._add("rect", x=x, y=y, width=width, height=height, rx=2, fill=fill)

    def line(self, points: Sequence[tuple[float, float]], stroke: str, thickness: float = 1) -> None:
        """Add a line through the points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polyline", points=path, fill="none", stroke=stroke, stroke_width=thickness, stroke_linejoin="round")

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        """Add a filled circle."""
        self._add("circle", cx=x, cy=y, r=radius, fill=fill)

    def text(  # noqa: PLR0913 - the last three by keyword
        self, x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", fill: str = INK
    ) -> None:
        """Add a line of text; `anchor` is start, middle or end."""
        self._add("text", text, x=x, y=y, font_size=size, text_anchor=anchor, fill=fill)

    def heading(self, x: float, y: float, text: str, size: int = 14) -> None:
        """Add a line of bold text."""
        self._add("text", text, x=x, y=y, font_size=size, font_weight=600, fill=INK)

    def render(self) -> str:
        """Return the whole document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" font-family={quoteattr(FONT)}>'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff" stroke="{GRID}"/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", ground, *self._elements, "</svg>", ""])

    def _add(self, name: str, content: str | None = None, **attributes: float | str) -> None:
        written = " ".join(
            f"{key.replace('_', '-')}={quoteattr(value if isinstance(value, str) else f'{value:g}')}"
            for key, value in attributes.items()
        )
        end = "/>" if content is None else f">{escape(content)}</{name}>"
        self._elements.append(f"<{name} {written}{end}")
