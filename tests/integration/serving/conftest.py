"""The real process in front of the emulator, over real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.serving.kit import Start
from tests.kit import (
    Arrivals,
    ProxyProcess,
    running_proxy,
)


@pytest.fixture
def arrivals(imds: EmulatorServer) -> Arrivals:
    return Arrivals(imds)


@pytest.fixture(scope="module")
def proxy(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """Run a proxy with the defaults, except for a budget that no test has to wait for."""
    with running_proxy(tmp_path_factory.mktemp("proxy"), upstream=imds.url, budget_requests=1000) as process:
        yield process
        assert "Traceback" not in process.log


@pytest.fixture
def start(imds: EmulatorServer, tmp_path: Path) -> Start:
    """Start another proxy before the same emulator, with settings of a test's own."""

    @contextlib.contextmanager
    def started(**settings: object) -> Iterator[ProxyProcess]:
        chosen: dict[str, Any] = {"upstream": imds.url, "budget_requests": 1000, **settings}
        with running_proxy(tmp_path, **chosen) as process:
            yield process
        assert "Traceback" not in process.log

    return started
