"""Turn scheduled-events documents into one line for each event that is new or has changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imdsproxy.ops.pending_events import read_events

GONE = "Gone"
"""The status of an event that is no longer listed: it is over, or was cancelled."""


@dataclass(slots=True)
class EventLines:
    """What has been written of the events so far."""

    _incarnation: int | None = None
    _written: dict[str, str] = field(default_factory=dict)

    def read(self, body: bytes) -> list[str] | None:
        """Return the lines for a document, or None if it is no scheduled-events document.

        A document of an incarnation that was read already has no lines. Otherwise each event that is new or different
        has one, and each that is no longer listed has one with the status `Gone`.
        """
        document = read_events(body)
        if document is None:
            return None
        incarnation, events = document
        if incarnation == self._incarnation:
            return []
        self._incarnation = incarnation
        listed = {str(event.get("EventId", "")): event for event in events}
        lines = [_line(incarnation, event) for event in self._different(listed)]
        for name in [name for name in self._written if name not in listed]:
            del self._written[name]
            lines.append(_line(incarnation, {"EventId": name, "EventStatus": GONE}))
        return lines

    def _different(self, listed: Mapping[str, Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        for name, event in listed.items():
            written = json.dumps(event, sort_keys=True)
            if self._written.get(name) != written:
                self._written[name] = written
                yield event


def _line(incarnation: int, event: Mapping[str, Any]) -> str:
    return json.dumps({"DocumentIncarnation": incarnation, **event}, ensure_ascii=True)
