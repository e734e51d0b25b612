"""The end of the program on Windows: Ctrl-C in its console, and the signal of Ctrl-Break and of a closed console."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import Arrivals, get, unused, wait_until
from tests.targets import INSTANCE
from tests.windows.wine import CTRL_C, Windows, windows_path

pytestmark = [pytest.mark.process, pytest.mark.windows]

# Wine's console sends Ctrl-C alone, so the process raises what Windows would raise in it for the others.
_BREAK_ITSELF = """
import pathlib, signal, sys, threading, time
def wait(order):
    while not order.exists():
        time.sleep(0.02)
    signal.raise_signal(signal.SIGBREAK)
threading.Thread(target=wait, args=(pathlib.Path(sys.argv.pop(1)),), daemon=True).start()
from imdsproxy.cli.main import main
sys.exit(main())
"""


def test_ctrl_c_finishes_requests_under_way(windows: Windows, imds: EmulatorServer, tmp_path: Path) -> None:
    order = tmp_path / "order"
    with windows.console(order, "-m", "imdsproxy", port=0, upstream=imds.url) as process:
        process.wait_for("readiness ready")
        port, arrivals = process.port(), Arrivals(imds)
        imds.emulator.latency = 1.5
        try:
            with ThreadPoolExecutor(1) as client:
                answer = client.submit(get, port, unused(INSTANCE))
                wait_until(lambda: arrivals() or answer.done())
                assert not answer.done(), (answer.exception(), process.process.poll(), process.text)
                order.write_text(CTRL_C, encoding="ascii")
        finally:
            imds.emulator.latency = 0.0
        assert process.ended() == 0, process.text
        assert answer.result().status == 200
        assert "Traceback" not in process.text


def test_ctrl_c_ends_the_demo_and_its_emulator(windows: Windows, tmp_path: Path) -> None:
    order = tmp_path / "order"
    with windows.console(order, "-m", "imdsproxy", "demo", "--port", "0", "--emulator-port", "0") as process:
        process.wait_for("Ctrl-C stops both.")
        port = process.port()
        assert get(port, INSTANCE).status == 200
        emulator = int(re.findall(r"emulated IMDS  http://127\.0\.0\.1:(\d+) ", process.text)[0])
        assert re.search(r"1 stale\. Requests to IMDS: \d+ \(\d+ answered 410\)\.", process.text)
        assert re.search(r"56 requests of clients, \d\d requests to IMDS, at most [1-5] of them in any", process.text)
        assert "curl.exe -i" in process.text
        assert "taskkill" in process.text
        order.write_text(CTRL_C, encoding="ascii")
        assert process.ended() == 0, process.text
        assert "the emulator has stopped" not in process.text, "Ctrl-C went to the emulator first"
    with pytest.raises(ConnectionRefusedError):
        get(emulator, INSTANCE)


def test_ctrl_c_ends_the_emulator(windows: Windows, tmp_path: Path) -> None:
    order = tmp_path / "order"
    with windows.console(order, "-m", "imdsproxy", "emulator", "--port", "0") as process:
        process.wait_for("try: curl")
        order.write_text(CTRL_C, encoding="ascii")
        assert process.ended() == 0, process.text


@pytest.mark.parametrize(("command", "started"), [("serve", " listening "), ("emulator", "try: curl")])
def test_closed_console_ends_the_proxy_with_status_0(
    windows: Windows, tmp_path: Path, command: str, started: str
) -> None:
    order = tmp_path / "order"
    with windows.python("-c", _BREAK_ITSELF, windows_path(order), command, "--port", "0") as process:
        process.wait_for(started)
        order.touch()
        assert process.ended() == 0, process.text
        assert "Traceback" not in process.text
