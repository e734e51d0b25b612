"""The command as a whole, in this process: settings in, report and exit status out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from imdsproxy.cli.check import command
from imdsproxy.cli.check.probes.asking import Pace
from imdsproxy.cli.main import main
from imdsproxy.emulator import EmulatorServer, run_in_thread


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    with run_in_thread() as server:
        yield server


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pauses: these tests are about the report."""
    monkeypatch.setattr(Pace, "wait", lambda _self: None)


def test_emulator_answers_as_imds(imds: EmulatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--upstream", imds.url, "--port", "0", "--identity", "--json"])
    report = json.loads(capsys.readouterr().out)
    steps = {step["step"]: step for step in report["steps"]}
    for step in ("settings", "port", "route", "answer", "guard", "latency", "clock", "throttling", "identity"):
        assert steps[step]["status"] == "ok", steps[step]
    assert steps["settings"]["found"].startswith(
        "differ from their defaults: IMDSPROXY_PORT (flag --port), IMDSPROXY_UPSTREAM"
    )


def test_mistaken_settings_are_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--port", "banana", "--max-wait", "x"]) == 2
    out, error = capsys.readouterr()
    assert out.startswith("failure  settings ")
    assert "banana" in out
    assert "MAX_WAIT" in out
    assert out.endswith("1 failure; 22 not checked\n")
    assert error == ""


def test_start_that_would_fail_is_a_finding(imds: EmulatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--upstream", imds.url, "--port", "0", "--warmup", "/metadata/%zz"]) == 2
    assert "IMDSPROXY_WARMUP" in capsys.readouterr().out


def test_report_without_a_reader_has_exit_status_1_at_least(
    imds: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "show", lambda _text: False)
    assert main(["check", "--upstream", imds.url, "--port", "0"]) >= 1


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [
        (False, {}, False),
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    shown: list[str] = []

    def show(text: str) -> bool:
        shown.append(text)
        return True

    monkeypatch.setattr(command, "show", show)
    main(["check", "--port", "banana"])
    assert ("\x1b" in shown[0]) == coloured, os.environ.get("TERM")
