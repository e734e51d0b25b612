from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imdsproxy.testing
from imdsproxy.testing import Imds, emulator
from imdsproxy.testing.options import machine_of
from imdsproxy.testing.running import listening_in, metric_in
from imdsproxy.testing.variables import set_variables
from tests.kit import get
from tests.targets import EVENTS, INSTANCE

VERSIONS = "/metadata/versions"


@pytest.fixture(scope="module")
def running() -> Iterator[Imds]:
    with emulator(rate=0, environment=False) as imds:
        yield imds


@pytest.fixture
def imds(running: Imds) -> Imds:
    running.recover()
    running.forget()
    return running


def test_requests_are_counted_from_the_last_forget(imds: Imds) -> None:
    get(imds.port, INSTANCE)
    get(imds.port, VERSIONS)
    assert (imds.asked(), imds.asked("/metadata/instance"), imds.asked(method="post")) == (2, 1, 0)
    assert imds.worst_second(VERSIONS) == 1
    assert [arrival.status for arrival in imds.arrivals] == [200, 200]
    imds.forget()
    assert (imds.asked(), imds.arrivals, imds.worst_second()) == (0, [], 0)


def test_target_without_a_slash_is_refused(imds: Imds) -> None:
    with pytest.raises(ValueError, match="'metadata' is not a path of IMDS; it begins with a slash"):
        imds.asked("metadata")


def test_faults_apply_until_they_end(imds: Imds) -> None:
    imds.fail(429, path="/metadata/versions", retry_after=3, times=1)
    answer = get(imds.port, VERSIONS)
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    imds.fail(times=1)
    imds.slow_down(0.01)
    assert [get(imds.port, VERSIONS).status for _ in range(2)] == [500, 200]
    imds.fail()
    imds.recover()
    assert get(imds.port, VERSIONS).status == 200


def test_event_of_this_machine_starts_once_it_is_approved(imds: Imds) -> None:
    event_id = imds.add_event("Preempt", in_=30)
    (event,) = imds.events
    assert (event["EventStatus"], event["Resources"]) == ("Scheduled", [imds.emulator.instance["compute"]["name"]])
    get(imds.port, EVENTS, method="POST", body=b'{"StartRequests": [{"EventId": "%s"}]}' % event_id.encode())
    assert imds.events[0]["EventStatus"] == "Started"
    imds.remove_event(event_id)
    assert imds.events == []
    with pytest.raises(ValueError, match="no event"):
        imds.remove_event(event_id)


def test_missing_requests_are_listed_with_what_came(imds: Imds) -> None:
    get(imds.port, VERSIONS)
    imds.wait_until_asked(VERSIONS)
    with pytest.raises(AssertionError, match=r"1 of 2 requests for /metadata/versions came within 0 s(.|\n)*200  GET"):
        imds.wait_until_asked(VERSIONS, times=2, within=0)


def test_option_that_does_not_exist_is_refused_with_those_that_do() -> None:
    options: dict[str, Any] = {"ratee": 5}
    with pytest.raises(ValueError, match=r"has no option ratee; it has enable_delay, .*, rate, set, speed, strict, vm"):
        emulator(**options).__enter__()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("rate", -1, "rate is a whole number, 0 for no limit, not -1"),
        ("identity_rate", 1.5, "identity_rate is a whole number, 0 for no limit, not 1.5"),
        ("identity_concurrency", True, "identity_concurrency is a whole number"),
        ("latency", "slow", "latency is a number, 0 or more, not 'slow'"),
        ("enable_delay", float("inf"), "enable_delay is a number, 0 or more, not inf"),
        ("speed", "fast", "speed is a number, 0 or more, not 'fast'"),
        ("speed", 0, "speed must be more than 0, not 0"),
        ("strict", "yes", "strict is True or False, not 'yes'"),
    ],
)
def test_option_without_meaning_is_refused_with_its_value(option: str, value: Any, message: str) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=re.escape(message)):
        emulator(**options).__enter__()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("compute.locatoin", "compute.locatoin is not a field; did you mean compute.location"),
        ("network.interface.9.macAddress", "network.interface.9 does not exist"),
        ("token-life", "token-life is decided when the emulated IMDS starts: set="),
    ],
)
def test_field_that_cannot_be_set_is_refused(imds: Imds, field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imds.set(field, "x")


def test_fields_are_set_as_json_has_them(imds: Imds) -> None:
    imds.set("compute.location", "west")
    imds.set("compute.tags", {"env": "test"})
    imds.set("network.interface.0.macAddress", "00")
    found = json.loads(get(imds.port, INSTANCE).body)
    assert found["compute"]["location"] == "west"
    assert found["compute"]["tagsList"] == [{"name": "env", "value": "test"}]
    assert found["network"]["interface"][0]["macAddress"] == "00"


def test_machine_comes_from_a_preset_a_file_a_description_or_a_value(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('preset = "windows"\n[compute]\nname = "mine"\n', encoding="ascii")
    windows = machine_of({"preset": "windows"})
    assert windows.instance["compute"]["offer"] == "Windows"
    for machine in (
        machine_of({"vm": file}),
        machine_of({"vm": {"preset": "windows", "compute": {"name": "mine"}}}),
        machine_of({"vm": windows, "set": {"compute.name": "mine"}}),
    ):
        assert machine.instance["compute"] == {**windows.instance["compute"], "name": "mine"}
    assert machine_of({"set": {"token-life": 600, "identities": ["system"]}}).token_life == 600
    with pytest.raises(ValueError, match="no preset 'window'; choose one of"):
        machine_of({"preset": "window"})


def test_variables_are_set_during_the_block_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", "elsewhere")
    monkeypatch.setenv("no_proxy", "a.example,localhost")
    monkeypatch.delenv("NO_PROXY", raising=False)
    before = dict(os.environ)
    with set_variables("http://127.0.0.1:1"):
        assert os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] == "http://127.0.0.1:1"
        assert "IDENTITY_ENDPOINT" not in os.environ
        assert os.environ["no_proxy"] == "a.example,127.0.0.1,localhost,::1"
    assert dict(os.environ) == before


def test_proxy_is_found_in_its_log() -> None:
    assert listening_in("") is None
    assert listening_in("info imdsproxy listening address=http://127.0.0.1:34 upstream=x\n") == "http://127.0.0.1:34"
    assert listening_in('{"message": "listening", "address": "http://[::1]:34", "upstream": ""}') == "http://[::1]:34"


def test_samples_of_a_metric_are_added_up() -> None:
    assert metric_in('a{b="1"} 2\na{b="2"} 3\nab 5\na_total 7\n', "a") == 5


def test_package_names_what_it_has() -> None:
    assert imdsproxy.testing.FakeClock().monotonic() > 0
    with pytest.raises(AttributeError, match=r"no attribute 'emulater'; it has .*emulator"):
        getattr(imdsproxy.testing, "emulater")  # noqa: B009 - a type checker knows that it is not there
