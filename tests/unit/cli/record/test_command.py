from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imdsproxy.cli.main import main
from imdsproxy.cli.record.asking import Asker
from imdsproxy.cli.record.command import record
from imdsproxy.cli.record.conversation import RecordError, conversation
from imdsproxy.cli.running.client import Place
from imdsproxy.config import Config
from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.emulator.vm.loading import load
from imdsproxy.emulator.vm.presets import preset
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.address import Address
from imdsproxy.testing.clock import FakeClock


@pytest.fixture(scope="module")
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="module")
def served(clock: FakeClock) -> Iterator[EmulatorServer]:
    """Serve an IMDS with its limit of five a second, in the time of `clock`."""
    emulator = Emulator(machine=preset("windows"), monotonic=clock.monotonic, wall=clock.wall)
    with run_in_thread(emulator) as server:
        yield server


@pytest.fixture
def config(served: EmulatorServer) -> Config:
    """Return the settings of a machine on which no proxy runs, and whose IMDS is the emulator."""
    return Config(port=0, upstream=Address(served.host, served.port))


def test_recording_is_written_for_its_owner_and_played_back(
    served: EmulatorServer, config: Config, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.emulator.reset()
    out = tmp_path / "vm.toml"
    assert record(config, {"out": str(out), "keep": "compute.name, compute.osProfil"}, clock.advance) == 0
    told, progress = capsys.readouterr()
    assert served.url in progress
    assert "replaced in compute.vmId: e0000000-0000-4000-8000-0000000000" in told
    assert "kept as it is: compute.name\n" in told
    assert "kept nothing, because there is no such field: compute.osProfil\n" in told
    assert "not recorded: access tokens, attested documents" in told
    assert f"play it back: imdsproxy emulator --vm {out}" in told
    if sys.platform != "win32":
        assert out.stat().st_mode & 0o777 == 0o600
    machine = load(str(out))
    assert (machine.name, machine.compute["offer"]) == ("examplevmname", "Windows")
    assert machine.compute["vmId"] != preset("windows").compute["vmId"]
    assert [identity.role for identity in machine.identities] == ["system"]
    # The limit was never reached, and what enables scheduled events was not asked for.
    assert {arrival.status for arrival in served.emulator.arrivals} <= {200, 400, 404}
    assert not [arrival for arrival in served.emulator.arrivals if b"scheduledevents" in arrival.target]


def test_url_takes_precedence_over_the_settings(
    served: EmulatorServer, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = Config(port=0, upstream=Address("127.0.0.1", 1))
    out = str(tmp_path / "vm.toml")
    assert record(nowhere, {"out": out, "url": served.url, "scheduled-events": "true"}, clock.advance) == 0
    assert "scheduledevents" in Path(out).read_text(encoding="utf-8")
    assert "kept" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "record needs a file to write: imdsproxy record --out vm.toml"),
        ({"out": "vm.json"}, "is a TOML file; name it .toml"),
        ({"out": "exists.toml"}, "exists; choose another name, or remove it first"),
        ({"out": "new.toml", "url": "ftp://x"}, "--url ftp://x must be http://HOST[:PORT]"),
        ({"out": "missing/new.toml"}, "is in a folder that does not exist; make it, or choose another --out"),
    ],
)
def test_mistake_is_reported_with_its_remedy(
    *,
    options: dict[str, str],
    words: str,
    config: Config,
    clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exists.toml").touch()
    with pytest.raises(SettingsError) as raised:
        record(config, options, clock.advance)
    assert words in str(raised.value)
    assert os.listdir(tmp_path) == ["exists.toml"]  # noqa: PTH208 - names alone


def test_what_passes_by_itself_is_waited_for(served: EmulatorServer, clock: FakeClock) -> None:
    served.emulator.faults.add(
        Fault(status=429, times=1, retry_after="7"), Fault(status=410, times=2), Fault(status=500, times=1)
    )
    before = clock.monotonic()
    place = Place(served.url, served.host, served.port)
    recording = Asker(place, clock.advance).hold(conversation())
    assert recording.versions("instance") == preset("windows").versions
    assert clock.monotonic() - before > 7 + 2 + 4 + 8


def test_what_does_not_pass_is_reported(served: EmulatorServer, clock: FakeClock) -> None:
    served.emulator.faults.add(Fault(status=500, path="/metadata/instance"))
    place = Place(served.url, served.host, served.port)
    with pytest.raises(RecordError, match=r"IMDS answers 500 to /metadata/instance\?api-version=2025-04-07 for 63 sec"):
        Asker(place, clock.advance).hold(conversation())
    served.emulator.reset()


def test_place_that_does_not_answer_is_named(clock: FakeClock) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(RecordError, match=rf"^http://127.0.0.1:{port} does not answer /metadata/versions as IMDS"):
            Asker(Place(f"http://127.0.0.1:{port}", "127.0.0.1", port), clock.advance).hold(conversation())


def test_command_line_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--port", "0", "--upstream", "http://127.0.0.1:1"]) == 2
    assert "record needs a file to write" in capsys.readouterr().err
