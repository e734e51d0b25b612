"""What the Windows tests share: one Windows for all of them, or the reason why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import EmulatorServer, run_in_thread
from tests.windows.wine import Process, Windows, missing


@pytest.fixture(scope="session")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Windows]:
    """A Windows of these tests' own; skip where it cannot be, or fail where REQUIRE_SYSTEM_TESTS says that it can."""
    if reason := missing():
        if os.environ.get("REQUIRE_SYSTEM_TESTS"):
            pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {reason}", pytrace=False)
        pytest.skip(reason)
    windows = Windows(tmp_path_factory.mktemp("windows"))
    try:
        yield windows
    finally:
        windows.end()


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    """An emulated IMDS on this side, whose clock and records the tests can trust."""
    with run_in_thread() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(windows: Windows, imds: EmulatorServer) -> Iterator[Process]:
    """The proxy on Windows, in front of that IMDS; at the end nothing in its log may be an error."""
    with windows.proxy(upstream=imds.url, max_wait=30, ttl="/metadata/instance=600") as process:
        process.wait_for("readiness ready")
        yield process
        assert process.process.poll() is None, process.text
        assert " error " not in process.text, process.text
        assert "Traceback" not in process.text, process.text
