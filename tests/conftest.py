"""Rules for every test: no network but loopback, no settings from outside."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests import loopback, measured, spread
from tests.size import LONG
from tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401  # hooks

if sys.platform != "win32":
    from tests import isolation

    ALONE = isolation.move_to_own_network()
else:
    ALONE = False
loopback.only_loopback()

KEPT = Path(__file__).resolve().parent.parent / ".hypothesis" / "examples"
# CI uses the same examples each time, so that a failure means a change. Long runs use new ones; those that failed are
# kept, and are tried first in the next run. No profile has a deadline, because a slow machine is not a failure.
settings.register_profile("plain", max_examples=50, deadline=None)
settings.register_profile("repeatable", max_examples=50, derandomize=True, deadline=None)
settings.register_profile(
    "long", max_examples=500, database=DirectoryBasedExampleDatabase(KEPT), print_blob=True, deadline=None
)
settings.load_profile("long" if LONG else "repeatable" if os.environ.get("CI") else "plain")

# Nothing that a developer has set reaches a test, nor a process that a test starts.
for name in [name for name in os.environ if name.upper().startswith("IMDSPROXY_")]:
    del os.environ[name]
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]

# A shell ignores SIGINT for what it runs in the background, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _trace_no_further_process() -> None:
    """Let the processes that tests start run untraced, except in `make test-long`.

    Tracing makes a process take twice as long to start and to work, and there are a thousand of them. What the
    processes of the tests themselves run is enough for every threshold.
    """
    if not LONG:
        for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]:
            del os.environ[name]


_trace_no_further_process()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Undo what pytest-cov does after each test with `no_cover`: it starts coverage again, with that of processes."""
    _trace_no_further_process()


def pytest_configure(config: pytest.Config) -> None:
    """Trace no more than coverage is measured by."""
    config.pluginmanager.register(measured)


def pytest_report_header() -> str:
    """Say how far the tests are kept from the network."""
    return "network: a namespace of the tests' own" if ALONE else "network: connections but to loopback are refused"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without Python's garbage collector, and let it look at nothing that exists by then.

    What is collected stays until the end. Looking through it takes a third of the time of the collection, and a fifth
    of a second each time that a test needs everything collected.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with what takes long, keep groups together, and trace only what adds to the coverage."""
    spread.sort(items)
    if config.getoption("loadgroup", default=False):
        spread.name_groups(items)
    measured.leave_out(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Spread the tests by what they share."""
    from tests.scheduler import BySharedWork  # noqa: PLC0415  # xdist is not wherever the tests run

    return BySharedWork(config, log) if config.getvalue("dist") == "loadgroup" else None


if not ALONE:

    @pytest.fixture(autouse=True)
    def _upstream_is_never_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
        """Return a process that forgets to name its upstream one where nothing listens."""
        monkeypatch.setenv("IMDSPROXY_UPSTREAM", "http://127.0.0.1:9")
