from __future__ import annotations

import dataclasses
import math

import pytest

from imdsproxy.emulator.event_kinds import ADVISORY, KINDS, EventError, UnknownEventError, kind_of
from imdsproxy.emulator.schedule import EVENT_VERSIONS, UNKNOWN_LASTS, Event, Phase, Schedule

T = 1_000.0
NEWEST = EVENT_VERSIONS[-1]


def event(event_id: str = "A", **changes: object) -> Event:
    made = Event(event_id, "Reboot", ("vm",), T, T + 900, "d", "Platform", 9)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def statuses(schedule: Schedule, now: float) -> tuple[int, list[str]]:
    document = schedule.at(now).document(NEWEST, lambda moment: moment)
    return document["DocumentIncarnation"], [each["EventStatus"] for each in document["Events"]]


@pytest.mark.parametrize("name", ["hardware-failure", "HardwareFailure", "hardware_failure", "HARDWAREFAILURE"])
def test_kind_is_found_in_any_spelling(name: str) -> None:
    assert kind_of(name) is KINDS["hardware-failure"]


def test_event_lives_from_announcement_to_the_end_of_its_duration() -> None:
    schedule = Schedule((event(),))
    assert [statuses(schedule, T + at) for at in (-1, 0, 899, 900, 908.9, 909)] == [
        (1, []),
        (2, ["Scheduled"]),
        (2, ["Scheduled"]),
        (3, ["Started"]),
        (3, ["Started"]),
        (4, []),
    ]


def test_approved_event_starts_and_ends_early() -> None:
    approved = Schedule((event(),)).at(T + 5).approved(["a"])
    assert approved is not None
    assert [statuses(approved, T + at) for at in (5, 13.9, 14)] == [(3, ["Started"]), (3, ["Started"]), (4, [])]


def test_late_approval_changes_nothing() -> None:
    schedule = Schedule((event(),)).at(T + 901)
    assert schedule.approved(["A"]) == schedule


def test_event_that_is_not_listed_cannot_be_approved() -> None:
    schedule = Schedule((event(), event("B", announced_at=T + 60))).at(T)
    assert schedule.approved(["A", "B"]) is None
    assert schedule.approved(["C"]) is None


def test_approval_of_a_recommendation_has_no_effect() -> None:
    schedule = Schedule((event(event_type=ADVISORY),)).at(T)
    assert schedule.approved(["A"]) == schedule


@pytest.mark.parametrize(("version", "types"), [("2020-07-01", ["Reboot"]), ("2024-07-09", ["Reboot", ADVISORY])])
def test_recommendation_is_listed_since_its_version(version: str, types: list[str]) -> None:
    schedule = Schedule((event(), event("B", event_type=ADVISORY))).at(T)
    assert [each["EventType"] for each in schedule.document(version, lambda moment: moment)["Events"]] == types


def test_failure_is_started_when_it_is_listed() -> None:
    schedule = Schedule((event(not_before=T),))
    assert statuses(schedule, T - 1) == (1, [])
    assert statuses(schedule, T) == (2, ["Started"])


def test_event_without_known_duration_ends_all_the_same() -> None:
    schedule = Schedule((event(duration=-1),))
    assert statuses(schedule, T + 900 + UNKNOWN_LASTS - 1) == (3, ["Started"])
    assert statuses(schedule, T + 900 + UNKNOWN_LASTS) == (4, [])
    assert schedule.at(T).document(NEWEST, lambda moment: moment)["Events"][0]["DurationInSeconds"] == -1


def test_event_that_interrupts_nothing_is_never_started() -> None:
    assert [statuses(Schedule((event(duration=0),)), T + at) for at in (899, 900)] == [(2, ["Scheduled"]), (3, [])]


def test_event_that_ends_when_it_begins_is_no_change() -> None:
    assert statuses(Schedule((event(duration=0, not_before=T),)), T + 1) == (1, [])


def test_cancelled_event_goes_without_a_start() -> None:
    schedule = Schedule((event(cancelled_at=T + 60),))
    assert [statuses(schedule, T + at) for at in (59, 60, 900)] == [(2, ["Scheduled"]), (3, []), (3, [])]
    assert event(cancelled_at=T + 60).starts_at == math.inf


def test_started_event_outlives_its_planned_cancellation() -> None:
    assert event(cancelled_at=T + 905).ends_at == T + 905
    assert event(cancelled_at=T + 905).phase(T + 901) is Phase.STARTED


def test_cancelling_removes_only_what_has_not_started() -> None:
    schedule = Schedule((event(), event("B", not_before=T + 10, duration=60))).at(T + 10)
    assert schedule.incarnation == 4
    cancelled = schedule.cancelled("a")
    assert (cancelled.incarnation, [each.event_id for each in cancelled.events]) == (5, ["B"])
    with pytest.raises(EventError, match="'b' has started and can no longer be cancelled; remove it instead"):
        cancelled.cancelled("b")
    with pytest.raises(UnknownEventError, match=r"^no event 'C'$"):
        cancelled.cancelled("C")


def test_removing_what_is_not_listed_yet_is_no_change() -> None:
    schedule = Schedule((event(announced_at=T + 60),)).at(T)
    assert schedule.without("A") == Schedule((), 1, T)


def test_id_is_taken_once_in_any_case() -> None:
    with pytest.raises(EventError, match="there is already an event 'a'"):
        Schedule((event(),)).with_event(event("a"))


def test_incarnation_never_falls() -> None:
    """Walk through every kind of change, also with a clock that goes back."""
    schedule, seen = Schedule(), [1]
    plan = [event("A"), event("B", not_before=T, duration=-1), event("C", cancelled_at=T + 3), event("D", duration=0)]
    for each in plan:
        schedule = schedule.at(T).with_event(each)
        seen.append(schedule.incarnation)
    for moment in (T + 2, T - 500, T + 3, T + 899, T + 900, T + 100, T + 2_000):
        schedule = schedule.at(moment)
        seen.append(schedule.incarnation)
        approved = schedule.approved(["D"])
        schedule = approved or schedule
        seen.append(schedule.incarnation)
    assert seen == sorted(seen)
    assert schedule.events == ()
