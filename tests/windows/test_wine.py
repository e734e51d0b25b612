"""The Windows of these tests itself: nothing that a test has started outlives the test, or holds it up."""

from __future__ import annotations

import pytest

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
