from __future__ import annotations

import re

import pytest

from imdsproxy.emulator.event_kinds import EventError
from imdsproxy.emulator.events import ScheduledEvents
from imdsproxy.emulator.schedule import EVENT_VERSIONS
from imdsproxy.emulator.timeline import read_duration, read_timeline
from tests import documents
from tests.kit import ROOT

TOML = """
[[event]]
at = "10s"
type = "reboot"
notice = "15m"
duration = "9s"

[[event]]
type = "hardware-failure"
duration = -1
resources = ["vm_1", "vm_2"]
description = "d"
source = "User"
id = "X"

[[event]]
type = "Freeze"
cancel = 60
"""


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0),
        (1.5, 1.5),
        ("90", 90),
        ("9s", 9),
        ("15m", 900),
        ("1h30m", 5400),
        ("1d", 86_400),
        ("500ms", 0.5),
        (" 2m ", 120),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert read_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "soon", "5 m", "-5s", "5w", "1e3", -1, True, None, [], float("inf"), "5m3"])
def test_other_durations_are_refused(written: object) -> None:
    with pytest.raises(EventError, match=re.escape(f"{written!r} is not a duration; write seconds")):
        read_duration(written)


def test_timeline_in_toml() -> None:
    assert read_timeline(TOML) == [
        {"after": 10.0, "event_type": "reboot", "notice": 900.0, "duration": 9.0},
        {
            "event_type": "hardware-failure",
            "duration": -1,
            "resources": ["vm_1", "vm_2"],
            "description": "d",
            "source": "User",
            "event_id": "X",
        },
        {"event_type": "Freeze", "cancel_after": 60.0},
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"event": [{"type": "Freeze", "at": "1m"}]}',
        '[{"type": "Freeze", "at": 60}]',
        '[[event]]\nat=60\ntype="Freeze"',
    ],
)
def test_timeline_in_each_form(text: str) -> None:
    assert read_timeline(text) == [{"event_type": "Freeze", "after": 60.0}]


def test_timeline_plays() -> None:
    now = [0.0]
    events = ScheduledEvents(wall=lambda: now[0])
    for each in read_timeline(TOML):
        events.add(**each)

    def listed(at: float) -> list[tuple[str, str]]:
        document = events.document(EVENT_VERSIONS[-1], at)
        return [(each["EventType"], each["EventStatus"]) for each in document["Events"]]

    assert listed(0) == [("Reboot", "Started"), ("Freeze", "Scheduled")]
    assert listed(10) == [("Reboot", "Scheduled"), ("Reboot", "Started"), ("Freeze", "Scheduled")]
    assert listed(60) == [("Reboot", "Scheduled"), ("Reboot", "Started")]
    assert listed(910) == [("Reboot", "Started")]
    assert listed(919) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[event]\n", "not TOML: "),
        ("[event]\ntype = 'reboot'", "a timeline is a list of events named event ([[event]] in TOML)"),
        ("\n[ event ]\ntype = 'reboot'", "a timeline is a list of events named event ([[event]] in TOML)"),
        ("[1", "not JSON: "),
        ("{", "not JSON: "),
        ("3", "not TOML: "),
        ("", "a timeline is a list of events named event"),
        ('event = "x"', "a timeline is a list of events named event"),
        ("[[events]]", "a timeline is a list of events named event ([[event]] in TOML); it has events"),
        ("[3]", "event 1: must be a table of keys, not 3"),
        ('[{"at": 1}]', "event 1: the event has no type"),
        ('[{"type": "Freeze"}, {"type": "nap"}]', "event 2: no event type 'nap'; known are freeze"),
        ('[{"type": "Freeze", "when": 1}]', "event 1: unknown key 'when'; known are at, type"),
        ('[{"type": "Freeze", "notice": "soon"}]', "event 1: notice: 'soon' is not a duration"),
        ('[{"type": "Freeze", "resources": "vm"}]', "event 1: resources must be a list of names, not 'vm'"),
        ('[{"type": "Freeze", "resources": [1]}]', "event 1: resources must be a list of names, not [1]"),
        ('[{"type": "Freeze", "id": 5}]', "event 1: id must be text, not 5"),
        ("[" * 100_000, "not"),
    ],
)
def test_faulty_timeline_names_its_fault(text: str, words: str) -> None:
    with pytest.raises(EventError, match=re.escape(words)):
        read_timeline(text)


def test_timeline_of_the_page_is_read_as_it_is() -> None:
    (block,) = [block for block in documents.blocks(ROOT / "docs" / "emulator.md") if "[[event]]" in block.text]
    plan = ScheduledEvents()
    for event in read_timeline(block.text):
        plan.add(**event)
    assert len(plan.listing()["Events"]) == 3
