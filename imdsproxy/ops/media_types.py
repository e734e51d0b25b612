"""Choose the format of the metrics by the Accept field of the scraper (RFC 9110 section 12.5.1)."""

from __future__ import annotations

_OPENMETRICS = "application/openmetrics-text"
_TEXT = ("text/plain", "text/*", "*/*")
"""The ranges that the text format is within, the most specific first."""


def accepts_openmetrics(accept: str) -> bool:
    """Return whether the scraper asks for OpenMetrics 1, and does not prefer the text format.

    A range such as `*/*` does not ask for it, because tools that were made for the text format send that.
    """
    weights: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if name == _OPENMETRICS and not values.get("version", "1").strip('"').startswith("1"):
            continue
        weights[name] = max(weights.get(name, 0.0), _weight(values.get("q", "1")))
    text = next((weights[name] for name in _TEXT if name in weights), 0.0)
    return weights.get(_OPENMETRICS, 0.0) > 0 and weights[_OPENMETRICS] >= text


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
