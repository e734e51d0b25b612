"""The kinds of scheduled events by name, their notices, and the errors about events.

Source: Microsoft's scheduled-events and spot pages.
"""

from __future__ import annotations

from typing import NamedTuple

ADVISORY = "SpotRebalanceRecommendation"
"""The type whose approval has no effect."""


class Kind(NamedTuple):
    """What an event is called on the wire, its shortest notice in seconds, and the description of the emulator."""

    event_type: str
    notice: float
    description: str


KINDS = {
    "freeze": Kind("Freeze", 900.0, "The host of the virtual machine is updated, which pauses the machine."),
    "reboot": Kind("Reboot", 900.0, "Virtual machine is going to be restarted as requested by authorized user."),
    "redeploy": Kind("Redeploy", 600.0, "The virtual machine is moved to another host and loses its ephemeral disks."),
    "preempt": Kind("Preempt", 30.0, "The spot virtual machine is evicted."),
    "terminate": Kind("Terminate", 300.0, "The virtual machine is deleted."),
    "spot-rebalance-recommendation": Kind(ADVISORY, 900.0, "The spot virtual machine is likely to be evicted."),
    # A failure is not announced: it is listed when it has started (Microsoft's scheduled-events page).
    "hardware-failure": Kind("Reboot", 0.0, "The host of the virtual machine has failed."),
}


class EventError(ValueError):
    """An event that cannot be scheduled or cancelled, with the reason."""


class UnknownEventError(EventError, KeyError):
    """There is no event of this id."""

    __str__ = Exception.__str__


def kind_of(name: str) -> Kind:
    """Return the kind that a name means: `Reboot`, `hardware-failure` and `HardwareFailure` are understood.

    Raises:
        EventError: There is no such kind.
    """
    wanted = _letters(name)
    found = next((kind for known, kind in KINDS.items() if _letters(known) == wanted), None)
    if found is None:
        raise EventError(f"no event type {name!r}; known are {', '.join(KINDS)}")
    return found


def _letters(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()
