"""Scheduled events in IMDS's answers: what is pending, and what has changed.

Source: Microsoft's scheduled-events page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TYPES = ("Freeze", "Reboot", "Redeploy", "Preempt", "Terminate")
OTHER = "other"
"""The type under which unknown types are counted."""


def pending_by_type(body: bytes) -> dict[str, int] | None:
    """Return how many events of each type a document lists, or None for any other document."""
    read = read_events(body)
    if read is None:
        return None
    counts = dict.fromkeys(TYPES, 0)
    for event in read[1]:
        kind = event.get("EventType")
        name = kind if isinstance(kind, str) and kind in TYPES else OTHER
        counts[name] = counts.get(name, 0) + 1
    return counts


def read_events(body: bytes) -> tuple[int, tuple[Mapping[str, Any], ...]] | None:
    """Return the incarnation and the events of a document, or None for any other document."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    incarnation, events = document.get("DocumentIncarnation"), document.get("Events")
    if not isinstance(incarnation, int) or not isinstance(events, list):
        return None
    return incarnation, tuple(event for event in events if isinstance(event, dict))
