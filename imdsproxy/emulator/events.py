"""The scheduled events of one virtual machine, whose time can run faster. Safe to use from any thread.

Their life is in `schedule`. Times are seconds since 1970 by the machine's clock, whatever the speed.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator.event_kinds import EventError, UnknownEventError, kind_of
from imdsproxy.emulator.schedule import EVENT_VERSIONS, UNKNOWN_DURATION, Event, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["EVENT_VERSIONS", "ScheduledEvents"]

DEFAULT_NAME = "examplevmname"
LAPSES_AFTER = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Pace:
    """A time that runs `speed` times as fast as the machine's clock, from `origin` on."""

    origin: float
    speed: float = 1.0

    def inner(self, now: float) -> float:
        """Return the fast time at a moment of the machine's clock."""
        return now if self.speed == 1 else self.origin + (now - self.origin) * self.speed

    def outer(self, moment: float) -> float:
        """Return when the machine's clock shows a moment of the fast time."""
        return moment if self.speed == 1 else self.origin + (moment - self.origin) / self.speed


class ScheduledEvents:
    """The events that are announced, and those that will be.

    Args:
        enable_delay: The seconds that the first request takes, in the time of the events.
        wall: The machine's clock.
        name: Returns the name of this machine, which an event concerns unless it names others.
        speed: How much faster than the machine's clock the time of the events runs. NotBefore is by the machine's
            clock all the same, so that a client can compare it with its own.

    Raises:
        ValueError: The speed is not a positive number.
    """

    def __init__(
        self,
        enable_delay: float = 0.0,
        wall: Callable[[], float] = time.time,
        name: Callable[[], str] = lambda: DEFAULT_NAME,
        speed: float = 1.0,
    ) -> None:
        if not 0 < speed < math.inf:
            raise ValueError(f"speed must be more than 0, not {speed}")
        self.enable_delay = enable_delay
        self._wall = wall
        self._name = name
        self._pace = Pace(wall(), speed)
        self._schedule = Schedule()
        self._enabled_at = 0.0
        self._requested_at: float | None = None
        self._lock = threading.Lock()

    @property
    def incarnation(self) -> int:
        """The incarnation of the document at this moment."""
        with self._lock:
            return self._at(self._wall()).incarnation

    def add(  # noqa: PLR0913 - one keyword for each property of an event
        self,
        event_type: str = "Reboot",
        *,
        notice: float | None = None,
        resources: Sequence[str] | None = None,
        event_id: str | None = None,
        description: str | None = None,
        source: str = "Platform",
        duration: float = UNKNOWN_DURATION,
        after: float = 0.0,
        cancel_after: float | None = None,
    ) -> str:
        """Schedule an event, and return its id.

        Args:
            event_type: A name of `schedule.KINDS`, also as IMDS writes it.
            notice: Seconds from its announcement to its NotBefore; None is the shortest notice of its type.
            resources: The names of the machines; None is this machine.
            event_id: None makes one.
            description: The text of the event; None is one of its type.
            source: `Platform` or `User`.
            duration: Seconds, -1 if not known.
            after: Seconds from now to its announcement.
            cancel_after: Seconds from its announcement to its cancellation, if it has not started by then.

        Raises:
            EventError: There is no such type, a value has no meaning, or the id is taken.
        """
        kind = kind_of(event_type)
        notice = kind.notice if notice is None else notice
        cancelled = math.inf if cancel_after is None else cancel_after
        _check("notice", notice)
        _check("after", after)
        _check("cancel_after", 0.0 if cancel_after is None else cancel_after)
        _check("duration", 0.0 if duration == UNKNOWN_DURATION else duration)
        if source not in {"Platform", "User"}:
            raise EventError(f"source must be Platform or User, not {source!r}")
        event_id = event_id or str(uuid.uuid4()).upper()
        with self._lock:
            schedule = self._at(self._wall())
            announced = schedule.now + after
            event = Event(
                event_id,
                kind.event_type,
                (self._name(),) if resources is None else tuple(resources),
                announced,
                announced + notice,
                kind.description if description is None else description,
                source,
                duration,
                cancelled_at=announced + cancelled,
            )
            self._schedule = schedule.with_event(event)
        return event_id

    def remove(self, event_id: str) -> None:
        """Drop an event; raise UnknownEventError, a KeyError, if there is no event of this id."""
        with self._lock:
            self._schedule = self._at(self._wall()).without(event_id)

    def cancel(self, event_id: str) -> None:
        """Cancel an event; raise EventError if there is none of this id, or if it has started."""
        with self._lock:
            self._schedule = self._at(self._wall()).cancelled(event_id)

    def clear(self) -> None:
        """Drop every event, also those that are not announced yet. The incarnation goes on growing."""
        with self._lock:
            schedule = self._at(self._wall())
            for event in schedule.events:
                schedule = schedule.without(event.event_id)
            self._schedule = schedule

    def reset(self) -> None:
        """Drop every event, and forget that scheduled events were enabled."""
        self.clear()
        with self._lock:
            self._requested_at = None

    def start(self, event_ids: Sequence[str], now: float) -> bool:
        """Start events that their machine has approved.

        Returns:
            False, with nothing changed, if one of them is not listed. What IMDS does then is not verified.
        """
        with self._lock:
            approved = self._at(now).approved(event_ids)
            self._schedule = approved or self._schedule
            return approved is not None

    def approve(self, event_id: str) -> None:
        """Start an event at once, as its machine would; raise UnknownEventError if it is not listed."""
        if not self.start([event_id], self._wall()):
            raise UnknownEventError(f"no event {event_id!r} is listed")

    def document(self, version: str, now: float) -> dict[str, Any]:
        """Return the document of an api-version."""
        with self._lock:
            return self._at(now).document(version, self._pace.outer)

    def listing(self) -> dict[str, Any]:
        """Return the document of the newest api-version, with the events that are not announced yet.

        Each event has `Phase`, `StartsIn` and `EndsIn` as well: seconds by the machine's clock, None for never.
        """
        with self._lock:
            schedule = self._at(self._wall())
            events = [
                event.document(EVENT_VERSIONS[-1], schedule.now, self._pace.outer)
                | {
                    "Phase": event.phase(schedule.now).value,
                    "AnnouncedIn": self._seconds(event.announced_at - schedule.now),
                    "StartsIn": self._seconds(event.starts_at - schedule.now),
                    "EndsIn": self._seconds(event.ends_at - schedule.now),
                }
                for event in schedule.events
            ]
            enabled = self._requested_at is not None
            return {"DocumentIncarnation": schedule.incarnation, "Enabled": enabled, "Events": events}

    def enable(self, now: float) -> float:
        """Count a GET, and return the seconds that it has to wait.

        The first GET, and the first one after 24 h without any, enables scheduled events, which takes `enable_delay`.
        """
        with self._lock:
            moment = self._pace.inner(now)
            if self._requested_at is None or moment - self._requested_at > LAPSES_AFTER:
                self._enabled_at = moment + self.enable_delay
            self._requested_at = moment
            return max(0.0, self._enabled_at - moment) / self._pace.speed

    def _at(self, now: float) -> Schedule:
        self._schedule = self._schedule.at(self._pace.inner(now))
        return self._schedule

    def _seconds(self, span: float) -> float | None:
        return round(max(0.0, span) / self._pace.speed, 3) if math.isfinite(span) else None


def _check(name: str, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise EventError(f"{name} must be 0 or more seconds, not {seconds}")
