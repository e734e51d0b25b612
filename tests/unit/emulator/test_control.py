from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, Fault
from imdsproxy.emulator import emulator as emulator_module
from imdsproxy.emulator.control import control, is_control
from imdsproxy.emulator.messages import Request
from imdsproxy.emulator.publishing import CERTIFICATES, tenant_answer
from imdsproxy.emulator.vm.presets import TENANT


def ask(emulator: Emulator, method: str, path: str, body: Any = None, since: str | None = None) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    query = () if since is None else (("since", since),)
    given = control(emulator, Request(method, path, query, (), raw))
    return given.status, json.loads(given.body)


def arrive(emulator: Emulator, *paths: str) -> None:
    for path in paths:
        emulator.leave(emulator.accept(Request("GET", path), path.encode(), ()))


def test_only_control_paths_are_control() -> None:
    assert is_control("/-/healthy")
    assert not is_control("/metadata/-/")


def test_healthy_is_200() -> None:
    assert ask(Emulator(), "GET", "/-/healthy") == (200, {"status": "healthy"})


def test_arrivals_are_listed_from_an_index() -> None:
    emulator = Emulator(monotonic=lambda: 7.0)
    arrive(emulator, "/a", "/b?x=1")
    emulator.arrivals[0].status = 404
    first = {"at": 7.0, "method": "GET", "target": "/a", "status": 404}
    second = {"at": 7.0, "method": "GET", "target": "/b?x=1", "status": None}
    assert ask(emulator, "GET", "/-/arrivals") == (200, [first, second])
    assert ask(emulator, "GET", "/-/arrivals", since="1") == (200, [second])
    assert ask(emulator, "GET", "/-/arrivals", since="2") == (200, [])
    for since in ("x", "-1", "", "٣", "9" * 5000):
        status, document = ask(emulator, "GET", "/-/arrivals", since=since)
        assert (status, document["error"]) == (400, f"since is an index, a whole number from 0 on, not {since!r}")


def test_indices_stay_valid_when_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator_module, "MOST_ARRIVALS", 2)
    emulator = Emulator()
    arrive(emulator, "/0", "/1", "/2", "/3")
    assert [arrival.target for arrival in emulator.arrivals_since(3)] == [b"/3"]
    assert [arrival.target for arrival in emulator.arrivals_since(0)] == [b"/2", b"/3"]


def test_faults_are_added_and_cleared() -> None:
    emulator = Emulator()
    assert ask(emulator, "POST", "/-/faults", {"status": 410, "for": 20}) == (200, {"faults": 1, "ids": [1]})
    added = ask(emulator, "POST", "/-/faults", [{"hang": True}, {"latency": 1}])
    assert added == (200, {"faults": 3, "ids": [2, 3]})
    assert ask(emulator, "DELETE", "/-/faults") == (200, {"faults": 0})
    assert len(emulator.faults) == 0


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b"3", {"statu": 1}, {}, [{"hang": True}, {"status": 1}], b"[" * 100_000]
)
@pytest.mark.parametrize("path", ["/-/faults"])
def test_one_invalid_fault_refuses_all(path: str, body: Any) -> None:
    emulator = Emulator()
    status, document = ask(emulator, "POST", path, body)
    assert (status, list(document)) == (400, ["error"])
    assert len(emulator.faults) == 0


def test_events_are_added_and_cleared() -> None:
    emulator = Emulator(wall=lambda: 1_700_000_000.0)
    status, document = ask(
        emulator,
        "POST",
        "/-/events",
        {
            "EventType": "Preempt",
            "EventId": "E",
            "Resources": ["vm"],
            "Description": "d",
            "EventSource": "User",
            "DurationInSeconds": 9,
            "NoticeInSeconds": 60,
        },
    )
    assert (status, document) == (200, {"EventId": "E"})
    event = emulator.events.document("2020-07-01", 0)["Events"][0]
    assert (event["NotBefore"], event["Resources"]) == ("Tue, 14 Nov 2023 22:14:20 GMT", ["vm"])
    assert ask(emulator, "DELETE", "/-/events") == (200, {"Events": []})
    assert emulator.events.document("2020-07-01", 0)["Events"] == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Type": "Reboot"}, "unknown key 'Type'; known are EventType, EventId"),
        ({"EventType": "Nap"}, "no event type 'Nap'"),
        ({"EventId": 5}, "EventId cannot be 5"),
        ({"NoticeInSeconds": "5"}, "NoticeInSeconds cannot be '5'"),
        ({"NoticeInSeconds": True}, "NoticeInSeconds cannot be True"),
        ({"Resources": [1]}, "Resources cannot be [1]; give a list of names"),
        ({"CancelAfterSeconds": -1}, "cancel_after must be 0 or more seconds"),
        ([], "the body must be a JSON object"),
        (b"{", "the body is not JSON: "),
    ],
)
def test_invalid_event_is_refused(body: Any, words: str) -> None:
    status, document = ask(Emulator(), "POST", "/-/events", body)
    assert status == 400
    assert words in document["error"]


def test_one_fault_is_removed_and_the_others_are_listed() -> None:
    emulator = Emulator(monotonic=lambda: 7.0)
    ask(emulator, "POST", "/-/faults", [{"status": 410, "for": 20}, {"hang": True, "times": 2, "path": "/metadata"}])
    second = {"id": 2, "path": "/metadata", "hang": True, "times": 2, "left": {"seconds": None, "times": 2}}
    first = {"id": 1, "path": "/", "status": 410, "seconds": 20.0, "left": {"seconds": 20.0, "times": None}}
    assert ask(emulator, "GET", "/-/faults") == (200, [first, second])
    assert ask(emulator, "DELETE", "/-/faults/1") == (200, {"faults": 1})
    assert ask(emulator, "GET", "/-/faults") == (200, [second])
    for name in ("1", "9", "x"):
        assert ask(emulator, "DELETE", f"/-/faults/{name}") == (404, {"error": f"no fault '{name}'"})


def test_fault_that_is_spent_is_no_longer_listed() -> None:
    now = [0.0]
    emulator = Emulator(monotonic=lambda: now[0])
    ask(emulator, "POST", "/-/faults", {"status": 410, "for": 20})
    now[0] = 20.0
    assert ask(emulator, "GET", "/-/faults") == (200, [])
    assert ask(emulator, "DELETE", "/-/faults/1")[0] == 404


def test_one_event_is_removed_cancelled_or_approved() -> None:
    emulator = Emulator(wall=lambda: 1_700_000_000.0)
    for name in ("A", "B", "C/D"):
        assert ask(emulator, "POST", "/-/events", {"EventId": name, "DurationInSeconds": 9}) == (200, {"EventId": name})
    assert ask(emulator, "POST", "/-/events", {"EventId": "b"})[0] == 400
    status, listing = ask(emulator, "POST", "/-/events/b/approve")
    assert (status, [event["Phase"] for event in listing["Events"]]) == (200, ["Scheduled", "Started", "Scheduled"])
    assert ask(emulator, "POST", "/-/events/B/cancel") == (
        409,
        {"error": "event 'B' has started and can no longer be cancelled; remove it instead"},
    )
    assert [each["EventId"] for each in ask(emulator, "POST", "/-/events/A/cancel")[1]["Events"]] == ["B", "C/D"]
    assert [each["EventId"] for each in ask(emulator, "DELETE", "/-/events/C%2FD")[1]["Events"]] == ["B"]
    assert ask(emulator, "GET", "/-/events") == (200, emulator.events.listing())


def test_missing_event_is_404_with_its_id() -> None:
    emulator = Emulator()
    for method, path in (("DELETE", "X"), ("POST", "X/cancel"), ("POST", "X/approve")):
        status, document = ask(emulator, method, f"/-/events/{path}")
        assert (status, "no event 'X'" in document["error"]) == (404, True)


def test_state_is_everything_at_once() -> None:
    emulator = Emulator(monotonic=lambda: 7.0)
    arrive(emulator, "/a", "/b")
    emulator.faults.add(Fault(hang=True))
    status, document = ask(emulator, "GET", "/-/state", since="1")
    assert status == 200
    assert (document["now"], document["next"]) == (7.0, 2)
    assert [arrival["target"] for arrival in document["arrivals"]] == ["/b"]
    assert document["faults"] == emulator.faults.listing()
    assert document["events"] == {"DocumentIncarnation": 1, "Enabled": False, "Events": []}


def test_reset_drops_arrivals_faults_and_events() -> None:
    emulator = Emulator()
    emulator.events.add()
    arrive(emulator, "/a")
    emulator.faults.add(Fault(hang=True))
    assert ask(emulator, "POST", "/-/reset")[0] == 200
    assert (emulator.arrivals, len(emulator.faults)) == ([], 0)
    assert emulator.events.listing() == {"DocumentIncarnation": 3, "Enabled": False, "Events": []}
    arrive(emulator, "/b")
    assert [arrival.target for arrival in emulator.arrivals_since(0)] == [b"/b"]


def test_other_path_is_404() -> None:
    assert ask(Emulator(), "GET", "/-/metrics")[0] == 404
    given = control(Emulator(), Request("POST", "/-/healthy"))
    assert (given.status, given.headers) == (405, (("allow", "GET"),))
    for path in (
        "/-/faults/",
        "/-/events/",
        "/-/events/x/",
        "/-/events//cancel",
        "/-/events/x/cancel/y",
        "/-//healthy",
    ):
        assert ask(Emulator(), "POST", path)[0] == 404


def test_nothing_is_published_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    emulator = Emulator()
    for path in CERTIFICATES:
        status, document = ask(emulator, "GET", path)
        assert (status, "the cryptography package is not installed" in document["error"]) == (404, True)
    for document in ("keys", "configuration"):
        assert tenant_answer(emulator, Request("GET", "/"), TENANT, document).status == 404
