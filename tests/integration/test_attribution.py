"""Who has cost what: the clients of a real proxy in its status."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import ProxyProcess, get, is_hit, running_proxy, unused
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="users are looked up on Linux only"),
]


def own(proxy: ProxyProcess) -> dict[str, Any]:
    """Return what this process's user has cost."""
    listed = json.loads(get(proxy.port, "/-/status.json").body)["clients"]
    found: list[dict[str, Any]] = [each for each in listed if each["name"].startswith(f"user {os.getuid()}")]
    assert len(found) == 1, listed
    return found[0]


def test_requests_permits_and_refusals_of_a_user_are_counted(imds: EmulatorServer, tmp_path: Path) -> None:
    with running_proxy(tmp_path, upstream=imds.url, budget_requests=1, budget_window=3600, max_wait=1) as proxy:
        # The proxy's own request at the start has the only permit.
        assert get(proxy.port, unused(INSTANCE)).status == 429
        assert get(proxy.port, unused(INSTANCE)).status == 429
        used = own(proxy)
        assert (used["sent"], used["requests"], used["refused"]) == (0, 2, 2)


def test_fresh_hits_are_nobodys(imds: EmulatorServer, tmp_path: Path) -> None:
    with running_proxy(tmp_path, upstream=imds.url) as proxy:
        target = unused(INSTANCE)
        assert not is_hit(get(proxy.port, target))
        assert all(is_hit(get(proxy.port, target)) for _ in range(5))
        used = own(proxy)
        assert (used["sent"], used["requests"], used["refused"]) == (1, 1, 0)
