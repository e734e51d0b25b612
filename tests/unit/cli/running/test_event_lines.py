from __future__ import annotations

import json
from typing import Any

import pytest

from imdsproxy.cli.running.event_lines import GONE, EventLines

FREEZE: dict[str, Any] = {"EventId": "a", "EventType": "Freeze", "EventStatus": "Scheduled"}
STARTED = {**FREEZE, "EventStatus": "Started"}
REBOOT = {"EventId": "b", "EventType": "Reboot", "EventStatus": "Scheduled"}
Documents = list[tuple[int, list[Any]]]


def lines(documents: Documents) -> list[list[dict[str, Any]]]:
    """Return the lines for each document, one after the other."""
    reader = EventLines()
    found = []
    for incarnation, events in documents:
        read = reader.read(json.dumps({"DocumentIncarnation": incarnation, "Events": events}).encode())
        assert read is not None
        found.append([json.loads(line) for line in read])
    return found


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([(1, [])], [[]]),
        ([(1, [FREEZE])], [[{"DocumentIncarnation": 1, **FREEZE}]]),
        ([(1, [FREEZE]), (1, [FREEZE])], [[{"DocumentIncarnation": 1, **FREEZE}], []]),
        ([(1, []), (2, [FREEZE])], [[], [{"DocumentIncarnation": 2, **FREEZE}]]),
        (
            [(1, [FREEZE]), (2, [STARTED])],
            [[{"DocumentIncarnation": 1, **FREEZE}], [{"DocumentIncarnation": 2, **STARTED}]],
        ),
        (
            [(1, [FREEZE]), (2, [FREEZE, REBOOT])],
            [[{"DocumentIncarnation": 1, **FREEZE}], [{"DocumentIncarnation": 2, **REBOOT}]],
        ),
        (
            [(1, [FREEZE]), (2, [])],
            [
                [{"DocumentIncarnation": 1, **FREEZE}],
                [{"DocumentIncarnation": 2, "EventId": "a", "EventStatus": GONE}],
            ],
        ),
        (
            [(1, [FREEZE]), (2, []), (3, [FREEZE])],
            [
                [{"DocumentIncarnation": 1, **FREEZE}],
                [{"DocumentIncarnation": 2, "EventId": "a", "EventStatus": GONE}],
                [{"DocumentIncarnation": 3, **FREEZE}],
            ],
        ),
    ],
    ids=["none", "one", "again", "a new one", "a change", "a second one", "over", "back"],
)
def test_event_has_a_line_when_it_is_new_changes_or_goes(
    documents: Documents, expected: list[list[dict[str, Any]]]
) -> None:
    assert lines(documents) == expected


def test_line_is_one_line_whatever_an_event_holds() -> None:
    read = EventLines().read(b'{"DocumentIncarnation":1,"Events":[{"EventId":"a","Description":"x\\n\\u001b[2J"}]}')
    assert read is not None
    assert [line.isprintable() for line in read] == [True]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error":"x"}'])
def test_other_document_has_no_lines(body: bytes) -> None:
    assert EventLines().read(body) is None
