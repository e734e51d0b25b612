"""What holds for every test: no network but loopback, no settings from outside."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings

if sys.platform != "win32":
    from tests import isolation

    ALONE = isolation.move_to_own_network()
    isolation.refuse_other_addresses()
else:
    ALONE = False

# The same examples each time where a failure must mean a change; new ones wherever somebody looks.
settings.register_profile("repeatable", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

# Nothing that a developer has set reaches a test, nor a process that a test starts.
for name in [name for name in os.environ if name.upper().startswith("IMDSPROXY_")]:
    del os.environ[name]
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]


def pytest_report_header() -> str:
    """Say how far the tests are kept from the network."""
    return "network: a namespace of the tests' own" if ALONE else "network: connections but to loopback are refused"


@pytest.fixture(autouse=True)
def _upstream_is_never_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a process that forgets to name its upstream one where nothing listens."""
    if not ALONE:
        monkeypatch.setenv("IMDSPROXY_UPSTREAM", "http://127.0.0.1:9")
