"""In CI a skipped test fails, unless its reason is expected there.

Elsewhere a test that lacks a tool is skipped and says which. A CI in which a tool is missing would then pass with fewer
tests, and no line would be red. So with the environment variable CI, on Linux, each skip is a failure, whether it comes
from a mark, a fixture, a test or the import of a module. Other systems lack what no package brings, so they may skip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

EXPECTED: Mapping[str, str] = {
    "only root may make network namespaces": "a CI without root runs all tests but these; .ci/run says which it is",
    "only root sees the open files of a proxy": "the same",
    "only root may start a process of another user": "the same",
    "only root may read the memory of a process": "the same",
    "no core dump of any process": "a limit or the kernel of that machine; elsewhere the tests show it",
    "no git checkout": "in an sdist, which has been compared with the checkout that it was made of",
    "the founding document is not beside the checkout": "it is not ours to ship; facts of our own hold what it shows",
}
"""The start of each reason that CI accepts, and why it does."""


def strict(environment: Mapping[str, str], platform: str) -> bool:
    """Return whether a skip is a failure in this run."""
    return bool(environment.get("CI")) and platform == "linux"


def complaint(reason: str) -> str:
    """Return the failure that a skip with this reason becomes; empty if the skip is expected."""
    if reason.startswith(tuple(EXPECTED)):
        return ""
    return f"skipped in CI: {reason}\nInstall what is missing in .ci/debian, or state the reason in tests/skips.py."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a test's skip into a failure. A test that is expected to fail is no skip."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a whole module's skip into a failure."""
    report = yield
    _judge(report)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or not strict(os.environ, sys.platform):
        return
    assert isinstance(report.longrepr, tuple)
    path, line, message = report.longrepr
    if told := complaint(str(message).removeprefix("Skipped: ")):
        report.outcome = "failed"
        report.longrepr = f"{Path(path).name}:{line}: {told}"
