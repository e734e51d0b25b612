"""Shared fixtures of the Windows tests: one Windows for each process of the tests, or the reason why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import EmulatorServer, run_in_thread
from tests.windows.process import Process
from tests.windows.wine import Windows, missing


@pytest.fixture(scope="session")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Windows]:
    """Prepare a Windows for these tests; skip if it is not available, or fail if REQUIRE_SYSTEM_TESTS demands it."""
    if reason := missing():
        if os.environ.get("REQUIRE_SYSTEM_TESTS"):
            pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {reason}", pytrace=False)
        pytest.skip(reason)
    windows = Windows(tmp_path_factory.mktemp("windows"))
    try:
        yield windows
    finally:
        windows.end()


@pytest.fixture(scope="module", autouse=True)
def _same_network(windows: Windows) -> Iterator[None]:
    """Run the tests of each file in the network of their Windows."""
    with windows.inside():
        yield


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    """Run an emulated IMDS on this side, whose clock and records the tests can trust."""
    with run_in_thread() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(windows: Windows, imds: EmulatorServer) -> Iterator[Process]:
    """Run the proxy on Windows in front of that IMDS; at the end its log must have no error."""
    with windows.proxy(upstream=imds.url, max_wait=30, ttl="/metadata/instance=600") as process:
        process.wait_for("readiness ready")
        yield process
        assert process.process.poll() is None, process.text
        assert " error " not in process.text, process.text
        assert "Traceback" not in process.text, process.text
