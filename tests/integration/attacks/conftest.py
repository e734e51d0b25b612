"""The real process with the emulator behind it, for hostile and odd requests, byte by byte.

For any bytes sent, the answer is the documented one, what is refused never reaches IMDS, and afterwards the process
serves the next client, has logged no traceback, no access token and no line of a client's making.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import Starter, check_labels, check_log
from tests.kit import ProxyProcess, get, running_proxy
from tests.servers import forbidden_port


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Start a proxy that says all it can, asks as often as it likes and tries nothing twice."""

    def started(upstream: str, **settings: Any) -> contextlib.AbstractContextManager[ProxyProcess]:
        ours: dict[str, Any] = {
            "upstream": upstream,
            "budget_requests": 1000,
            "budget_window": 0.01,
            "retry_max": 0,
            "header_timeout": 2,
            "log_level": "debug",
            "access_log": "true",
        }
        return running_proxy(tmp_path_factory.mktemp("proxy"), **{**ours, **settings})

    return started


@pytest.fixture(scope="module")
def shared(imds: EmulatorServer, start: Starter) -> Iterator[ProxyProcess]:
    """Run a proxy for one file's tests; afterwards no label of its metrics may come from a client."""
    with start(imds.url) as process:
        yield process
        check_labels(process)


@pytest.fixture
def proxy(shared: ProxyProcess) -> Iterator[ProxyProcess]:
    """Return that proxy, which must survive each test unharmed."""
    seen = len(shared.log)
    yield shared
    assert shared.process.poll() is None
    assert get(shared.port, "/metadata/versions").status == 200
    check_log(shared.log[seen:])


@pytest.fixture(scope="module")
def guarded(imds: EmulatorServer, start: Starter) -> Iterator[ProxyProcess]:
    """Run a proxy with rules: allowed and denied paths, accepted host names."""
    with start(
        imds.url,
        allow="/metadata/instance,/metadata/identity,/metadata/versions",
        deny="/metadata/identity/oauth2,/metadata/instance/compute/userData",
        require_metadata_header="always",
        allowed_hosts="imds.internal",
    ) as process:
        yield process


@pytest.fixture
def trap() -> Iterator[int]:
    """Return the port of a loopback listener to which no test may cause a connection."""
    with forbidden_port() as port:
        yield port
