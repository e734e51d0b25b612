"""What the integration tests share: the emulated IMDS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from imdsproxy.emulator.messages import json_answer


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    """IMDS without limits of its own, one for a module."""
    emulator = Emulator(
        rate=0, identity_rate=0, identity_concurrency=0, extra={"reprovisiondata": json_answer({"ovf": "x"})}
    )
    with run_in_thread(emulator) as server:
        yield server


@pytest.fixture
def fresh_imds() -> Iterator[EmulatorServer]:
    """IMDS without limits of its own, one for a test."""
    with run_in_thread(Emulator(rate=0, identity_rate=0, identity_concurrency=0)) as server:
        yield server
