"""The life of scheduled events as values: what is listed at a moment follows from the events and the time alone.

An event is *pending* until it is announced, then *scheduled*. It is *started* from its NotBefore or its approval on,
and *gone* when its duration is over. A cancelled event goes without a start. Source: Microsoft's scheduled-events and
spot pages. Times are seconds since 1970. Not verified:

- how long an event of unknown duration stays listed (here `UNKNOWN_LASTS`);
- that a spot rebalance recommendation has a NotBefore and then starts (that approving it has no effect is documented).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from enum import Enum
from typing import Any

from imdsproxy.emulator.event_kinds import ADVISORY, EventError, UnknownEventError

EVENT_VERSIONS = (
    *("2017-03-01", "2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"),
    "2024-07-09",
)
UNKNOWN_DURATION = -1
UNKNOWN_LASTS = 300.0
"""Seconds for which an event of unknown duration stays listed once it has started."""

# The first api-version of a type and of a field.
_TYPE_INTRODUCED = {"Preempt": "2017-11-01", "Terminate": "2019-01-01", ADVISORY: "2024-07-09"}
_FIELD_INTRODUCED = {
    "Description": "2019-04-01",
    "EventSource": "2019-08-01",
    "DurationInSeconds": "2020-07-01",
}
_BARE_NAMES_SINCE = "2017-08-01"


class Phase(Enum):
    """How far an event has come."""

    PENDING = "Pending"
    SCHEDULED = "Scheduled"
    STARTED = "Started"
    GONE = "Gone"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        announced_at: From when on it is listed.
        not_before: When it starts, unless it is approved before.
        duration: Seconds, `UNKNOWN_DURATION` if it is not known.
        approved_at: When its machine approved it, None if it did not.
        cancelled_at: When it is cancelled, if it has not started by then.
    """

    event_id: str
    event_type: str
    resources: tuple[str, ...]
    announced_at: float
    not_before: float
    description: str
    source: str
    duration: float = UNKNOWN_DURATION
    approved_at: float | None = None
    cancelled_at: float = math.inf

    @property
    def starts_at(self) -> float:
        """When it starts, infinite if it is cancelled before."""
        approved = self.not_before if self.approved_at is None else self.approved_at
        start = max(self.announced_at, min(self.not_before, approved))
        return start if start <= self.cancelled_at else math.inf

    @property
    def ends_at(self) -> float:
        """From when on it is no longer listed."""
        lasts = self.duration if self.duration >= 0 else UNKNOWN_LASTS
        return min(self.starts_at + lasts, max(self.announced_at, self.cancelled_at))

    def phase(self, now: float) -> Phase:
        """Return how far the event has come."""
        if now < self.announced_at:
            return Phase.PENDING
        if now >= self.ends_at:
            return Phase.GONE
        return Phase.STARTED if now >= self.starts_at else Phase.SCHEDULED

    def changes(self, now: float) -> int:
        """Return how often the event has changed the list of events. Changes at one moment count once.

        An approval is a change of its own, even at the moment of the announcement.
        """
        approved = self.approved_at is not None
        if self.ends_at <= self.announced_at and not approved:
            return 0
        shown_as_started = self.starts_at < self.ends_at and (approved or self.starts_at > self.announced_at)
        return sum((now >= self.announced_at, shown_as_started and now >= self.starts_at, now >= self.ends_at))

    def approved(self, now: float) -> Event:
        """Return the event after its approval, which has no effect once it has started."""
        if self.event_type == ADVISORY or self.phase(now) is not Phase.SCHEDULED:
            return self
        return replace(self, approved_at=now)

    def document(self, version: str, now: float, shown: Callable[[float], float]) -> dict[str, Any]:
        """Return the event as it is listed.

        Args:
            version: The api-version, which decides on the fields.
            now: NotBefore is empty once the event has started.
            shown: Converts NotBefore into the time of the clients' clocks.
        """
        started = self.phase(now) is Phase.STARTED
        prefix = "" if version >= _BARE_NAMES_SINCE else "_"
        everything = {
            "EventId": self.event_id,
            "EventStatus": "Started" if started else "Scheduled",
            "EventType": self.event_type,
            "ResourceType": "VirtualMachine",
            "Resources": [prefix + name for name in self.resources],
            "NotBefore": "" if started else formatdate(shown(self.not_before), usegmt=True),
            "Description": self.description,
            "EventSource": self.source,
            "DurationInSeconds": math.ceil(self.duration),
        }
        return {name: value for name, value in everything.items() if _FIELD_INTRODUCED.get(name, "") <= version}


@dataclass(frozen=True, slots=True)
class Schedule:
    """All events at a moment. Its time does not go back, so that its incarnation only grows."""

    events: tuple[Event, ...] = ()
    passed: int = 1
    """The incarnation without the changes of `events`."""
    now: float = -math.inf

    @property
    def incarnation(self) -> int:
        """The number of changes of the list of events so far, and one."""
        return self.passed + sum(event.changes(self.now) for event in self.events)

    def at(self, now: float) -> Schedule:
        """Return the schedule at a later moment, without the events that are gone."""
        now = max(now, self.now)
        gone = [event for event in self.events if event.phase(now) is Phase.GONE]
        passed = self.passed + sum(event.changes(now) for event in gone)
        return Schedule(tuple(event for event in self.events if event not in gone), passed, now)

    def find(self, event_id: str) -> Event:
        """Return the event of an id, in any case; raise UnknownEventError if there is none."""
        found = next((event for event in self.events if event.event_id.lower() == event_id.lower()), None)
        if found is None:
            raise UnknownEventError(f"no event {event_id!r}")
        return found

    def with_event(self, event: Event) -> Schedule:
        """Return the schedule with one more event; raise EventError if its id is taken."""
        if any(other.event_id.lower() == event.event_id.lower() for other in self.events):
            raise EventError(f"there is already an event {event.event_id!r}")
        return replace(self, events=(*self.events, event))

    def without(self, event_id: str) -> Schedule:
        """Return the schedule without an event, whatever its phase; raise UnknownEventError if there is none."""
        event = self.find(event_id)
        listed = event.phase(self.now) is not Phase.PENDING
        passed = self.passed + event.changes(self.now) + listed
        return replace(self, events=tuple(other for other in self.events if other != event), passed=passed)

    def approved(self, event_ids: Sequence[str]) -> Schedule | None:
        """Return the schedule after an approval, None if one of the events is not listed."""
        wanted = {event_id.lower() for event_id in event_ids}
        if not wanted <= {event.event_id.lower() for event in self.listed("")}:
            return None
        events = (event.approved(self.now) if event.event_id.lower() in wanted else event for event in self.events)
        return replace(self, events=tuple(events))

    def cancelled(self, event_id: str) -> Schedule:
        """Return the schedule after the cancellation of an event, which is gone at once.

        Raises:
            EventError: It has started; only an event that has not started can be cancelled.
            UnknownEventError: There is no such event.
        """
        if self.find(event_id).phase(self.now) is Phase.STARTED:
            raise EventError(f"event {event_id!r} has started and can no longer be cancelled; remove it instead")
        return self.without(event_id)

    def listed(self, version: str) -> list[Event]:
        """Return the events that a client of an api-version sees; `""` is for all of them."""
        return [
            event
            for event in self.events
            if event.phase(self.now) is not Phase.PENDING
            and (not version or _TYPE_INTRODUCED.get(event.event_type, "") <= version)
        ]

    def document(self, version: str, shown: Callable[[float], float]) -> dict[str, Any]:
        """Return the whole document; `shown` converts NotBefore into the time of the clients' clocks."""
        events = [event.document(version, self.now, shown) for event in self.listed(version)]
        return {"DocumentIncarnation": self.incarnation, "Events": events}
