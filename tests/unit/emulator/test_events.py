from __future__ import annotations

from typing import Any

import pytest

from imdsproxy.emulator.event_kinds import EventError
from imdsproxy.emulator.events import EVENT_VERSIONS, ScheduledEvents

NOW = 1_700_000_000.0
NEWEST = EVENT_VERSIONS[-1]


def events(enable_delay: float = 0.0) -> ScheduledEvents:
    return ScheduledEvents(enable_delay, lambda: NOW)


def test_event_has_all_fields_in_the_newest_version() -> None:
    scheduled = events()
    event_id = scheduled.add("Freeze", resources=["a", "b"], description="d", source="User", duration=5)
    assert scheduled.document(NEWEST, NOW) == {
        "DocumentIncarnation": 2,
        "Events": [
            {
                "EventId": event_id,
                "EventStatus": "Scheduled",
                "EventType": "Freeze",
                "ResourceType": "VirtualMachine",
                "Resources": ["a", "b"],
                "NotBefore": "Tue, 14 Nov 2023 22:28:20 GMT",
                "Description": "d",
                "EventSource": "User",
                "DurationInSeconds": 5,
            },
        ],
    }


@pytest.mark.parametrize(
    ("version", "fields", "types", "name"),
    [
        ("2017-03-01", 0, ["Reboot"], "_a"),
        ("2017-08-01", 0, ["Reboot"], "a"),
        ("2017-11-01", 0, ["Reboot", "Preempt"], "a"),
        ("2019-01-01", 0, ["Reboot", "Preempt", "Terminate"], "a"),
        ("2019-04-01", 1, ["Reboot", "Preempt", "Terminate"], "a"),
        ("2019-08-01", 2, ["Reboot", "Preempt", "Terminate"], "a"),
        ("2020-07-01", 3, ["Reboot", "Preempt", "Terminate"], "a"),
    ],
)
def test_fields_depend_on_the_version(version: str, fields: int, types: list[str], name: str) -> None:
    scheduled = events()
    for event_type in ("Reboot", "Preempt", "Terminate"):
        scheduled.add(event_type, resources=["a"])
    shown = scheduled.document(version, NOW)["Events"]
    assert [event["EventType"] for event in shown] == types
    assert all(len(event) == 6 + fields and event["Resources"] == [name] for event in shown)


@pytest.mark.parametrize(
    ("event_type", "notice"),
    [("Freeze", 900), ("Reboot", 900), ("Redeploy", 600), ("Preempt", 30), ("Terminate", 300)],
)
def test_event_starts_when_its_notice_is_over(event_type: str, notice: float) -> None:
    scheduled = events()
    scheduled.add(event_type)
    assert scheduled.document(NEWEST, NOW + notice - 1)["Events"][0]["EventStatus"] == "Scheduled"
    started = scheduled.document(NEWEST, NOW + notice)
    assert started["DocumentIncarnation"] == 3
    assert (started["Events"][0]["EventStatus"], started["Events"][0]["NotBefore"]) == ("Started", "")
    assert scheduled.document(NEWEST, NOW + notice + 1) == started


def test_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="no event type 'Nap'; known are freeze"):
        events().add("Nap")


def test_acknowledging_starts_all_or_none() -> None:
    scheduled = events()
    first, second = scheduled.add(event_id="First"), scheduled.add(event_id="Second")
    assert not scheduled.start([first, "nothing"], NOW)
    assert scheduled.incarnation == 3
    assert scheduled.start(["FIRST", second], NOW)
    assert scheduled.incarnation == 5
    assert scheduled.start([first], NOW), "an event that has started is accepted again"
    assert scheduled.incarnation == 5


def test_removed_event_is_no_longer_listed() -> None:
    scheduled = events()
    scheduled.add(event_id="A")
    scheduled.add(event_id="B")
    scheduled.remove("a")
    assert [event["EventId"] for event in scheduled.document(NEWEST, NOW)["Events"]] == ["B"]
    scheduled.clear()
    assert scheduled.document(NEWEST, NOW) == {"DocumentIncarnation": 5, "Events": []}
    with pytest.raises(KeyError):
        scheduled.remove("a")


def test_feature_lapses_after_a_day_without_requests() -> None:
    scheduled = events(enable_delay=120)
    day = 24 * 3600
    moments = [0, 119, 120, day, 2 * day, 3 * day + 1]
    assert [scheduled.enable(NOW + moment) for moment in moments] == [120, 1, 0, 0, 0, 120]


def test_event_concerns_this_machine_unless_it_names_others() -> None:
    scheduled = ScheduledEvents(wall=lambda: NOW, name=lambda: "vm_7")
    scheduled.add()
    scheduled.add(resources=["other"])
    assert [event["Resources"] for event in scheduled.document(NEWEST, NOW)["Events"]] == [["vm_7"], ["other"]]


def test_fast_time_shows_not_before_by_the_machines_clock() -> None:
    scheduled = ScheduledEvents(enable_delay=120, wall=lambda: NOW, speed=60)
    scheduled.add("Reboot", duration=120, after=60)
    assert scheduled.enable(NOW) == 2
    assert scheduled.document(NEWEST, NOW + 0.9)["Events"] == []
    (event,) = scheduled.document(NEWEST, NOW + 1)["Events"]
    assert (event["NotBefore"], event["DurationInSeconds"]) == ("Tue, 14 Nov 2023 22:13:36 GMT", 120)
    assert scheduled.document(NEWEST, NOW + 16)["Events"][0]["EventStatus"] == "Started"
    assert scheduled.document(NEWEST, NOW + 18)["Events"] == []


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan")])
def test_speed_is_a_positive_number(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be more than 0"):
        ScheduledEvents(speed=speed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"notice": -1}, "notice must be 0 or more seconds, not -1"),
        ({"after": float("nan")}, "after must be 0 or more seconds"),
        ({"duration": -2}, "duration must be 0 or more seconds"),
        ({"cancel_after": float("inf")}, "cancel_after must be 0 or more seconds"),
        ({"source": "Nature"}, "source must be Platform or User, not 'Nature'"),
        ({"event_id": "a"}, "there is already an event 'a'"),
    ],
)
def test_event_without_meaning_is_refused(arguments: dict[str, Any], words: str) -> None:
    scheduled = events()
    scheduled.add(event_id="A")
    with pytest.raises(EventError, match=words):
        scheduled.add(**arguments)
    assert scheduled.incarnation == 2


def test_listing_has_pending_events_and_seconds() -> None:
    scheduled = events()
    scheduled.add("Freeze", after=10, duration=5, event_id="A")
    scheduled.add("Preempt", cancel_after=20, event_id="B")
    listing = scheduled.listing()
    assert (listing["DocumentIncarnation"], listing["Enabled"]) == (2, False)
    figures = ("EventId", "Phase", "AnnouncedIn", "StartsIn", "EndsIn")
    assert [tuple(event[name] for name in figures) for event in listing["Events"]] == [
        ("A", "Pending", 10, 910, 915),
        ("B", "Scheduled", 0, None, 20),
    ]


def test_cancelled_event_is_no_longer_listed() -> None:
    scheduled = events()
    scheduled.add(event_id="A")
    scheduled.cancel("a")
    assert scheduled.document(NEWEST, NOW) == {"DocumentIncarnation": 3, "Events": []}


def test_reset_drops_events_and_the_feature_has_to_be_enabled_again() -> None:
    scheduled = events(enable_delay=120)
    scheduled.add(after=60)
    scheduled.add()
    scheduled.enable(NOW)
    scheduled.reset()
    assert scheduled.listing() == {"DocumentIncarnation": 3, "Enabled": False, "Events": []}
    assert scheduled.enable(NOW + 500) == 120
