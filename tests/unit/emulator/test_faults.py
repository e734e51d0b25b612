from __future__ import annotations

from typing import Any

import pytest

from imdsproxy.emulator.faults import Fault, Faults

ROOT: tuple[str, ...] = ("metadata", "instance")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "the fault has no effect"),
        ({"seconds": 3}, "the fault has no effect"),
        ({"status": 410, "hang": True}, "exclude each other"),
        ({"reset": True, "garbage": True}, "exclude each other"),
        ({"hang": True, "retry_after": "1"}, "go with a status"),
        ({"latency": 1, "body": "x"}, "go with a status"),
        ({"status": 100}, "status must be between 200 and 599, not 100"),
        ({"status": 600}, "status must be between 200 and 599, not 600"),
        ({"latency": -1}, "latency must be 0 or more"),
        ({"latency": "slow"}, "latency must be a number, 0 or more, not 'slow'"),
        ({"latency": float("inf")}, "latency must be 0 or more"),
        ({"hang": True, "seconds": 0}, "seconds must be more than 0"),
        ({"hang": True, "times": 0}, "times must be 1 or more"),
        ({"hang": True, "share": 1.5}, "share must be between 0 and 1"),
    ],
)
def test_invalid_fault_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fault(**arguments)


@pytest.mark.parametrize(
    ("mapping", "fault"),
    [
        ({"status": "410", "for": "20"}, Fault(status=410, seconds=20.0)),
        ({"status": 500, "share": 0.1, "path": "/x"}, Fault(status=500, share=0.1, path="/x")),
        ({"hang": True, "times": "1"}, Fault(hang=True, times=1)),
        ({"status": 429, "retry-after": 3}, Fault(status=429, retry_after="3")),
        ({"latency": "0.2", "seconds": 4, "hang": False}, Fault(latency=0.2, seconds=4.0)),
    ],
)
def test_fault_is_read_from_named_values(mapping: dict[str, Any], fault: Fault) -> None:
    assert Fault.from_mapping(mapping) == fault


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"statu": 410}, "unknown key 'statu'; known are for, body"),
        ({"status": "x"}, "status must be a number, not 'x'"),
        ({"status": []}, r"status must be a number, not \[\]"),
        ({"status": True}, "status needs a value"),
        ({"status": None}, "status has no value"),
        ({"hang": "1x"}, "hang takes no value"),
        ({"hang": True, "for": ""}, "for must be a number"),
    ],
)
def test_invalid_values_are_refused_with_their_key(mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fault.from_mapping(mapping)


def test_fault_ends_after_its_seconds() -> None:
    clock = Clock()
    faults = Faults(clock)
    faults.add(Fault(status=410, seconds=5))
    assert len(faults) == 1
    assert faults.apply(ROOT, 104.9)[0] is not None
    assert faults.apply(ROOT, 105.0) == (None, 0.0)
    assert len(faults) == 0


def test_fault_ends_after_its_times() -> None:
    faults = Faults(Clock())
    faults.add(Fault(hang=True, times=2))
    assert [faults.apply(ROOT, 0)[0] is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("prefix", "path", "struck"),
    [
        ("/", "/metadata/versions", True),
        ("/metadata/instance", "/metadata/instance", True),
        ("/Metadata/Instance/", "/metadata/instance/compute", True),
        ("/metadata/instance", "/metadata/instancex", False),
        ("/metadata/instance", "/metadata", False),
    ],
)
def test_fault_applies_to_its_path_and_below(prefix: str, path: str, struck: bool) -> None:
    faults = Faults(Clock())
    faults.add(Fault(status=500, path=prefix))
    assert (faults.apply(tuple(path[1:].split("/")), 0)[0] is not None) is struck


def test_share_is_repeatable_and_approximate() -> None:
    def struck(seed: int) -> list[bool]:
        faults = Faults(Clock(), seed)
        faults.add(Fault(status=500, share=0.1))
        return [faults.apply(ROOT, 0)[0] is not None for _ in range(2000)]

    assert struck(1) == struck(1) != struck(2)
    assert 150 < sum(struck(1)) < 250


@pytest.mark.parametrize(("share", "struck"), [(0.0, 0), (1.0, 50)])
def test_share_of_0_and_1_is_none_and_all(share: float, struck: int) -> None:
    faults = Faults(Clock())
    faults.add(Fault(status=500, share=share))
    assert sum(faults.apply(ROOT, 0)[0] is not None for _ in range(50)) == struck


def test_latencies_add_and_the_first_breakage_applies() -> None:
    faults = Faults(Clock())
    gone, hang = Fault(status=410, latency=0.5, times=1), Fault(hang=True, times=1)
    faults.add(Fault(latency=0.25), gone, hang)
    assert faults.apply(ROOT, 0) == (gone, 0.75)
    assert faults.apply(ROOT, 0) == (hang, 0.25), "what did not come to pass is not spent"
    assert faults.apply(ROOT, 0) == (None, 0.25)
    faults.clear()
    assert faults.apply(ROOT, 0) == (None, 0.0)


def test_status_answer_has_its_body_and_retry_after() -> None:
    plain = Fault(status=429, retry_after="7")
    assert plain.answer(identity=False).headers == (("retry-after", "7"),)
    assert b"Temporarily throttled" in plain.answer(identity=True).body
    assert Fault(status=200, body="not json").answer(identity=True).body == b"not json"
    assert Fault(status=204).answer(identity=False).content_type is None


@pytest.mark.parametrize("name", ["hang", "reset", "truncate", "garbage"])
def test_each_breakage_is_named(name: str) -> None:
    assert Fault.from_mapping({name: True}).breakage == name
    assert Fault(latency=1).breakage is None
