"""Each command of `imdsproxy` on Windows: its exit status, and the reason of a refusal."""

from __future__ import annotations

import codecs
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kit import get
from tests.windows.wine import Windows, windows_path

pytestmark = [pytest.mark.process, pytest.mark.windows]


SUCCEED = {
    "--help": "usage: imdsproxy",
    "--version": "imdsproxy 0.",
    "serve --help": "--port",
    "emulator --help": "--fault",
    "emulator events --help": "cancel",
    "config": "IMDSPROXY_PORT",
    "config --toml": "port = 8254",
    "config --env": "IMDSPROXY_PORT=8254",
    "config --markdown": "| `IMDSPROXY_PORT` |",
    "redirect --uid 990": "table ip imdsproxy",
    "redirect --remove": "delete table ip imdsproxy",
}
REFUSE = {
    "serve --uds C:\\imdsproxy.sock": "Python does not support Unix sockets on Windows",
    "serve --upstream unix:/run/imdsproxy.sock": "Python does not support Unix sockets on Windows",
    "serve --budget-file C:\\budget": "a budget is shared on Linux only",
    "serve --port 65536": "must be a whole number from 0 to 65535",
    "serve --config-file C:\\nothing.toml": "IMDSPROXY_CONFIG_FILE",
    "serve --host 192.0.2.1": "IMDSPROXY_HOST=192.0.2.1",
    "redirect": "Windows cannot redirect",
    "redirect --uid 990 --load": "Windows cannot redirect",
    "redirect --remove --load": "Windows cannot redirect",
    "demo --upstream http://127.0.0.1:9": "is the demo's own emulator",
    "emulator --port none": "is not a port",
    "emulator --events C:\\nothing.toml": "cannot read",
    "emulator --tokens az": "the Azure CLI, az, is not found on PATH",
    "emulator --tokens az --host 0.0.0.0": "127.0.0.1 or ::1 only",
    "sevre": "did you mean serve?",
}


@pytest.fixture(scope="module")
def done(windows: Windows) -> dict[str, subprocess.CompletedProcess[str]]:
    """Return the result of each command line; several run at a time, because each mostly waits."""
    lines = [*SUCCEED, *REFUSE]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(lines, pool.map(lambda line: windows.run(*line.split()), lines), strict=True))


@pytest.mark.parametrize("line", SUCCEED)
def test_command_succeeds(done: dict[str, subprocess.CompletedProcess[str]], line: str) -> None:
    assert done[line].returncode == 0, done[line].stderr
    assert SUCCEED[line] in done[line].stdout
    assert "Traceback" not in done[line].stderr


@pytest.mark.parametrize("line", REFUSE)
def test_command_refuses_with_its_reason(done: dict[str, subprocess.CompletedProcess[str]], line: str) -> None:
    assert done[line].returncode == 2, done[line].stderr
    assert REFUSE[line] in done[line].stderr
    assert len(done[line].stderr.splitlines()) == 1
    assert done[line].stdout == ""


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_toml_with_a_byte_order_mark_is_read(windows: Windows, tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "imdsproxy.toml"
    file.write_bytes(mark + b"port = 8000\r\nbudget_requests = 4\r\n")
    done = windows.run("config", "--toml", "--config-file", windows_path(file))
    assert done.returncode == 0, done.stderr
    assert {"port = 8000", "budget_requests = 4"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_toml_in_utf_16_is_refused(windows: Windows, tmp_path: Path, coding: str) -> None:
    file = tmp_path / "imdsproxy.toml"
    file.write_bytes("port = 8000\r\n".encode(coding))
    done = windows.run("serve", "--config-file", windows_path(file))
    assert done.returncode == 2
    assert "UTF-16" in done.stderr


def test_characters_outside_the_code_page_are_escaped(windows: Windows) -> None:
    done = windows.run("config", "--unknown-settings", "warn", config_file="C:\\設定.toml")
    assert done.returncode == 2
    assert "\\u8a2d\\u5b9a.toml" in done.stderr
    printed = windows.run_python("-c", "from imdsproxy.cli.standard_streams import show; show(chr(0x8a2d))")
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, "\\u8a2d", "")


def test_every_locked_package_has_its_requirements(windows: Windows) -> None:
    """The lock is made on another system; a dependency for Windows alone would be missed here."""
    program = """
import importlib.metadata as metadata, re
from pathlib import Path
names = {re.sub("[-_.]+", "-", one.name).lower() for one in metadata.distributions()}
for one in metadata.distributions():
    for wanted in one.requires or []:
        name, _, marker = wanted.partition(";")
        name = re.sub("[-_.]+", "-", re.match("[A-Za-z0-9._-]+", name)[0]).lower()
        windows = "win32" in marker and "!=" not in marker or "Windows" in marker
        if "extra" not in marker and (windows or not marker) and name not in names:
            print(one.name, "requires", wanted)
print(len(names), "packages")
"""
    done = windows.run_python("-c", program)
    assert done.stderr == ""
    *absent, count = done.stdout.splitlines()
    assert absent == []
    assert int(count.split()[0]) > 15


def test_emulator_answers(windows: Windows) -> None:
    with windows.python("-m", "imdsproxy", "emulator", "--port", "0") as emulator:
        port = emulator.port("emulator: ")
        assert get(port, "/metadata/instance?api-version=2021-02-01").status == 200
        assert get(port, "/metadata/instance?api-version=2021-02-01", {}).status == 400


def test_events_of_the_emulator_are_steered(windows: Windows, tmp_path: Path) -> None:
    timeline = tmp_path / "events.toml"
    timeline.write_bytes(codecs.BOM_UTF8 + b'[[event]]\r\ntype = "freeze"\r\nid = "A"\r\n')
    arguments = ("emulator", "--port", "0", "--events", windows_path(timeline), "--speed", "60")
    with windows.python("-m", "imdsproxy", *arguments) as emulator:
        url = ("--url", f"http://127.0.0.1:{emulator.port('emulator: ')}")
        assert windows.run("emulator", "events", "cancel", "A", *url).returncode == 0
        added = windows.run("emulator", "events", "add", "reboot", "--in", "15m", "--for", "9s", *url)
        assert added.returncode == 0, added.stderr
        listed = json.loads(windows.run("emulator", "events", "list", "--json", *url).stdout)["Events"]
        assert [(event["EventId"], event["EventType"]) for event in listed] == [(added.stdout.strip(), "Reboot")]
