from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from imdsproxy.emulator.cli import hint, main, make_parser
from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.vm.loading import load


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fault", "statu=410"], "--fault: 'statu=410': unknown key 'statu'; known are for, body"),
        (["--fault", "status=410,hang"], "--fault: 'status=410,hang': status, hang, reset"),
        (["--fault", "status=x"], "--fault: 'status=x': status must be a number, not 'x'; e.g. status=410"),
        (["--fault", "status"], "--fault: 'status': status needs a value, as in status=1"),
        (["--fault", "status=410,status=500"], "--fault: 'status=410,status=500': status is given twice"),
        (["--fault", ""], "--fault: '': unknown key ''"),
        (["--fault", "for=3"], "--fault: 'for=3': the fault has no effect; give status"),
        (["--port", "http"], "--port: 'http' is not a port; give a number from 0 to 65535"),
        (["--port", "65536"], "--port: '65536' is not a port"),
        (["--rate", "-1"], "--rate: '-1' is not a rate; give a whole number, 0 for no limit"),
        (["--identity-rate", "1.5"], "--identity-rate: '1.5' is not a rate"),
        (["--latency", "soon"], "--latency: 'soon' is not a duration; give seconds, 0 or more"),
        (["--token-life", "-1"], "--token-life: '-1' is not a duration"),
        (["--latency", "inf"], "--latency: 'inf' is not a duration"),
        (["--preset", "solaris"], "--preset: invalid choice: 'solaris'"),
        (["--set", "compute.tag=a:b"], "--set compute.tag=a:b: compute.tag is not a field; did you mean compute.tags"),
        (["--vm", "nothing.toml"], "nothing.toml: cannot be read: No such file or directory; check the path"),
        (["--ca", "/nowhere/ca"], "--ca: /nowhere/ca: No such file or directory; name a folder that"),
        (["--public-url", "imds"], "--public-url: 'imds' is not an address such as http://127.0.0.1:8255"),
        (["--public-url", "http://h/x"], "--public-url: 'http://h/x' is not an address"),
        (["--public-url", "http://h:x"], "--public-url: 'http://h:x' is not an address"),
        (["--tokens", "mine"], "--tokens: invalid choice: 'mine'"),
        (["--tokens", "az", "--host", "0.0.0.0"], "--tokens az: your own tokens are lent on 127.0.0.1 or ::1 only"),
        (["--tokens", "az", "--host", "localhost"], "127.0.0.1 or ::1 only, not on --host localhost"),
        (["--speed", "0"], "--speed: '0' is not a speed; give a number above 0, e.g. 60"),
        (["--speed", "fast"], "--speed: 'fast' is not a duration"),
        (["--events", "/nowhere/x"], "--events: cannot read '/nowhere/x': No such file or directory"),
        (["--prot", "1"], "unrecognized arguments: --prot 1 (--help lists every flag)"),
    ],
)
def test_usage_error_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("imdsproxy emulator: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ([], "2021-02-01"),
        (["newest-version=2019-06-01"], "2019-06-01"),
        (["versions=2021-03-01,2025-04-07"], "2025-04-07"),
    ],
)
def test_printed_request_has_a_version_that_the_region_offers(changes: list[str], version: str) -> None:
    assert f"?api-version={version}" in hint("http://127.0.0.1:8255", load(None, None, changes))


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--fault SPEC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("status=410,for=20", Fault(status=410, seconds=20)),
        ("status=500, share=0.1, path=/metadata/instance", Fault(status=500, share=0.1, path="/metadata/instance")),
        ("hang,times=1", Fault(hang=True, times=1)),
        ("latency=0.2", Fault(latency=0.2)),
        ("status=429,retry-after=3", Fault(status=429, retry_after="3")),
    ],
)
def test_fault_flags_are_parsed(spec: str, fault: Fault) -> None:
    assert make_parser().parse_args(["--fault", spec, "--fault", "reset"]).fault == [fault, Fault(reset=True)]


def test_defaults_are_those_of_imds() -> None:
    options = make_parser().parse_args([])
    assert (options.host, options.port, options.rate, options.identity_rate) == ("127.0.0.1", 8255, 5, 20)
    assert (options.token_life, options.latency, options.fault, options.quiet) == (None, 0, [], False)
    assert (options.vm, options.preset, options.set) == (None, None, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[event]]", "event 1: the event has no type"),
        ('[{"type": "Freeze", "id": "A"}, {"type": "Freeze", "id": "a"}]', "event 2: there is already an event 'a'"),
        ('[{"type": "Freeze", "source": "Nature"}]', "source must be Platform or User, not 'Nature'"),
    ],
)
def test_faulty_timeline_is_one_line(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events"
    file.write_text(text, encoding="utf-8")
    assert main(["--events", str(file)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_timeline_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "events.toml"
    file.write_text('[[event]]\ntype = "reboot"\nnotice = "15m"\n', encoding=encoding)
    options = make_parser().parse_args(["--events", str(file), "--speed", "60"])
    assert (options.events, options.speed) == ([{"event_type": "reboot", "notice": 900.0}], 60)


def test_public_address_loses_its_slash() -> None:
    assert make_parser().parse_args(["--public-url", "https://imds:8255/"]).public_url == "https://imds:8255"


def test_folder_of_keys_needs_cryptography(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["--ca", str(tmp_path / "ca")]) == 2
    assert "--ca: the cryptography package is not installed; requirements/emulator.txt" in capsys.readouterr().err
    assert not (tmp_path / "ca").exists()
