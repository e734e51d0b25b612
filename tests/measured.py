"""Which tests the coverage of `make test` is measured in.

Tracing doubles or triples the time of a test, whatever code it runs. The decisions are in `tests/unit` and
`tests/proxy`, which alone have to reach every branch of the pure rooms. Those left out here talk to processes, whose
coverage only `make test-long` measures, or repeat with generated values what the tables of the others reach.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.size import LONG

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
        if left_out[item.path] or any(item.get_closest_marker(mark) for mark in _ELSEWHERE):
            item.add_marker("no_cover")
