"""Which tests the coverage of `make test` is measured in.

Tracing doubles or triples the time of a test, whatever code it runs. The decisions are in `tests/unit` and
`tests/proxy`, which alone have to reach every branch of the pure rooms. Those left out here talk to processes, whose
coverage only `make test-long` measures, or repeat with generated values what the tables of the others reach.

Tracing slows down every call, whosever code it is. So it goes on while the modules of the package are imported, and
while a test or a fixture runs, but not while pytest collects, reports, and looks for what is next.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.size import LONG

_PACKAGE = Path(__file__).parent.parent / "imdsproxy"

_ELSEWHERE = ("system", "windows", "client", "large")
"""Marks of the tests whose code runs in processes that they start."""
_FOLDERS = tuple(Path(__file__).parent / folder for folder in ("property", "conformance", "integration/attacks"))
"""The first generates values; the second repeats what others state; the third attacks processes."""


def leave_out(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` runs without tracing; `make test-long` traces all but those marked by hand."""
    if LONG:
        return
    left_out = {path: any(path.is_relative_to(folder) for folder in _FOLDERS) for path in {item.path for item in items}}
    for item in items:
        if left_out[item.path] or any(mark.name in _ELSEWHERE for mark in item.iter_markers()):
            item.add_marker("no_cover")


_paused: Any = None
"""The tracer of coverage, while it is off."""


def _pause() -> None:
    """Take coverage's tracer off, if it is on. A debugger's stays."""
    global _paused  # noqa: PLW0603  # the interpreter has one tracer, too
    tracer = sys.gettrace()
    if tracer is not None and type(tracer).__module__.startswith("coverage"):
        _paused = tracer
        sys.settrace(None)


@contextlib.contextmanager
def _traced(item: pytest.Item) -> Generator[None]:
    """Trace what runs here, unless the test is left out."""
    if item.get_closest_marker("no_cover"):
        yield
        return
    if _paused is not None and sys.gettrace() is None:
        sys.settrace(_paused)
    try:
        yield
    finally:
        _pause()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """End the first of the two coverages that pytest-cov begins in a process of xdist.

    It is never saved, and would go on wherever the second pauses, which is in each test with `no_cover`.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and "coverage" in sys.modules:
        from coverage import Coverage  # noqa: PLC0415  # it is not wherever the tests run

        first = Coverage.current()
        if first is not None:
            first.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the package under the tracer, and collect without it."""
    if sys.gettrace() is not None:
        for file in sorted(_PACKAGE.rglob("*.py")):
            parts = file.relative_to(_PACKAGE.parent).with_suffix("").parts
            if parts[-1] not in {"__init__", "__main__"}:
                with contextlib.suppress(ImportError, AssertionError):  # an extra is missing, or it is Windows' own
                    importlib.import_module(".".join(parts))
    _pause()
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Trace the fixtures."""
    with _traced(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Trace the test."""
    with _traced(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Trace the end of the fixtures."""
    with _traced(item):
        return (yield)
