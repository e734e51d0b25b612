"""Scheduled events of the virtual machine, and their approval.

Source: Microsoft's scheduled-events page. Times are seconds since 1970. Safe to use from any thread.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EVENT_VERSIONS = (*("2017-03-01", "2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"),)
# The shortest notice of each type, in seconds. Below: the first api-version of a type and of a field.
_NOTICE = {"Freeze": 900.0, "Reboot": 900.0, "Redeploy": 600.0, "Preempt": 30.0, "Terminate": 300.0}
_TYPE_INTRODUCED = {"Preempt": "2017-11-01", "Terminate": "2019-01-01"}
_FIELD_INTRODUCED = {
    "Description": "2019-04-01",
    "EventSource": "2019-08-01",
    "DurationInSeconds": "2020-07-01",
}
_BARE_NAMES_SINCE = "2017-08-01"
LAPSES_AFTER = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `duration` is in seconds, -1 if it is not known."""

    event_id: str
    event_type: str
    resources: tuple[str, ...]
    not_before: float
    description: str
    source: str
    duration: int
    started: bool = False

    def document(self, version: str) -> dict[str, Any]:
        """Return the event with the fields of this api-version. NotBefore is empty once it has started."""
        prefix = "" if version >= _BARE_NAMES_SINCE else "_"
        everything = {
            "EventId": self.event_id,
            "EventStatus": "Started" if self.started else "Scheduled",
            "EventType": self.event_type,
            "ResourceType": "VirtualMachine",
            "Resources": [prefix + name for name in self.resources],
            "NotBefore": "" if self.started else formatdate(self.not_before, usegmt=True),
            "Description": self.description,
            "EventSource": self.source,
            "DurationInSeconds": self.duration,
        }
        return {name: value for name, value in everything.items() if _FIELD_INTRODUCED.get(name, "") <= version}


class ScheduledEvents:
    """The list of events. Each change increases its incarnation by one."""

    def __init__(self, enable_delay: float = 0.0, wall: Callable[[], float] = time.time) -> None:
        self.enable_delay = enable_delay
        self.incarnation = 1
        self._wall = wall
        self._events: dict[str, Event] = {}
        self._enabled_at = 0.0
        self._requested_at: float | None = None
        self._lock = threading.Lock()

    def add(  # noqa: PLR0913 - one keyword for each property of an event
        self,
        event_type: str = "Reboot",
        *,
        notice: float | None = None,
        resources: Sequence[str] = ("examplevmname",),
        event_id: str | None = None,
        description: str = "Virtual machine is going to be restarted as requested by authorized user.",
        source: str = "Platform",
        duration: int = -1,
    ) -> str:
        """Schedule an event, and return its id.

        Args:
            event_type: One of Freeze, Reboot, Redeploy, Preempt and Terminate.
            notice: Seconds until the event; None is the shortest notice of its type.
            resources: The names of the machines.
            event_id: None makes one.
            description: The text of the event.
            source: `Platform` or `User`.
            duration: Seconds, -1 if not known.

        Raises:
            ValueError: There is no such type.
        """
        if event_type not in _NOTICE:
            raise ValueError(f"no event type {event_type!r}; known are {', '.join(_NOTICE)}")
        event_id = event_id or str(uuid.uuid4()).upper()
        not_before = self._wall() + (_NOTICE[event_type] if notice is None else notice)
        event = Event(event_id, event_type, tuple(resources), not_before, description, source, duration)
        with self._lock:
            self._events[event_id.lower()] = event
            self.incarnation += 1
        return event_id

    def remove(self, event_id: str) -> None:
        """Drop an event; raise KeyError if there is no event of this id."""
        with self._lock:
            del self._events[event_id.lower()]
            self.incarnation += 1

    def clear(self) -> None:
        """Drop every event."""
        for event_id in list(self._events):
            self.remove(event_id)

    def start(self, event_ids: Sequence[str], now: float) -> bool:
        """Start events that their machine has approved.

        Returns:
            False, with nothing changed, if one of them does not exist. What IMDS does then is not verified.
        """
        with self._lock:
            self._start_due(now)
            wanted = [event_id.lower() for event_id in event_ids]
            if not all(event_id in self._events for event_id in wanted):
                return False
            for event_id in wanted:
                self._start(event_id)
            return True

    def document(self, version: str, now: float) -> dict[str, Any]:
        """Return the whole document. An event whose time has come starts by itself."""
        with self._lock:
            self._start_due(now)
            shown = [event for event in self._events.values() if _TYPE_INTRODUCED.get(event.event_type, "") <= version]
            return {
                "DocumentIncarnation": self.incarnation,
                "Events": [event.document(version) for event in shown],
            }

    def enable(self, now: float) -> float:
        """Count a GET, and return the seconds that it has to wait.

        The first GET, and the first one after 24 h without any, enables scheduled events, which takes `enable_delay`.
        """
        with self._lock:
            if self._requested_at is None or now - self._requested_at > LAPSES_AFTER:
                self._enabled_at = now + self.enable_delay
            self._requested_at = now
            return max(0.0, self._enabled_at - now)

    def _start_due(self, now: float) -> None:
        for event_id, event in self._events.items():
            if event.not_before <= now:
                self._start(event_id)

    def _start(self, event_id: str) -> None:
        event = self._events[event_id]
        if not event.started:
            self._events[event_id] = replace(event, started=True)
            self.incarnation += 1
