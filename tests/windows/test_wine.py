"""The Windows of these tests itself: nothing that a test leaves behind holds another up."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.windows.network import MOST_CLOSED, SETTING
from tests.windows.wine import Windows

pytestmark = [pytest.mark.process, pytest.mark.windows]

LEAVE_ANOTHER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; print('second', flush=True); time.sleep(600)"])
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("seconds", ["0", "600"])
def test_what_a_process_has_started_ends_with_it(windows: Windows, seconds: str) -> None:
    with windows.python("-c", LEAVE_ANOTHER, seconds) as process:
        process.wait_for("second")
        assert len(process.started()) == {"0": 1, "600": 2}[seconds]
    assert process.started() == []
    assert process.out == ["second"]


def test_closed_connections_do_not_pile_up() -> None:
    if int(SETTING.read_text(encoding="ascii")) != MOST_CLOSED:
        pytest.skip("this process may not make a network, or change its settings")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for _ in range(3 * MOST_CLOSED):
            with socket.create_connection(listening.getsockname()), listening.accept()[0]:
                pass
    rows = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    closed = [row for row in rows if row.split()[3] == "06"]
    assert 0 < len(closed) <= MOST_CLOSED + 1
