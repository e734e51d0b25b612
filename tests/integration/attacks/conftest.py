"""The real process with the emulator behind it, for requests that are hostile or odd, byte by byte.

Whatever is sent: the answer is the documented one, what is refused never reaches IMDS, and afterwards the process
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
    """The process of one file's tests; after all that was sent, no label of its metrics is of a client's making."""
    with start(imds.url) as process:
        yield process
        check_labels(process)


@pytest.fixture
def proxy(shared: ProxyProcess) -> Iterator[ProxyProcess]:
    """The same, which has to come through each of the tests unhurt."""
    seen = len(shared.log)
    yield shared
    assert shared.process.poll() is None
    assert get(shared.port, "/metadata/versions").status == 200
    check_log(shared.log[seen:])


@pytest.fixture(scope="module")
def guarded(imds: EmulatorServer, start: Starter) -> Iterator[ProxyProcess]:
    """A proxy with rules: what is allowed, what is denied, whose name it goes by."""
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
    """The port of a listener on loopback to which nobody may ever connect."""
    with forbidden_port() as port:
        yield port
