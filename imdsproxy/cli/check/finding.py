"""What a step finds: a status, what was found, and the next thing to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The status of a finding."""

    OK = "ok"
    SKIPPED = "skipped"
    """The step could not be checked, or was not asked for. It does not change the exit status."""
    WARNING = "warning"
    FAILURE = "failure"


EXIT = {Status.OK: 0, Status.WARNING: 1, Status.FAILURE: 2}
"""The exit status of the command, by the worst finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step found. `docs/troubleshooting.md` explains each code."""

    status: Status
    found: str
    """What was found, in one line."""
    code: str = ""
    """The name of the finding, which stays the same from version to version; empty if all is well."""
    advice: str = ""
    """The next thing to do, in one line."""
    asked: str = ""
    """What was asked for this, and how: "the proxy at http://127.0.0.1:8254"; empty if nothing was."""


NOT_CHECKED = "not-checked"
"""The code of a step that nothing can be said about before an earlier one is repaired."""


def ok(found: str, *, asked: str = "") -> Finding:
    """Return the finding that all is well."""
    return Finding(Status.OK, found, asked=asked)


def skipped(code: str, found: str, advice: str = "") -> Finding:
    """Return the finding that something could not be checked, or was not."""
    return Finding(Status.SKIPPED, found, code, advice)


def warning(code: str, found: str, advice: str, *, asked: str = "") -> Finding:
    """Return a finding that may be intended, or will cause trouble later."""
    return Finding(Status.WARNING, found, code, advice, asked)


def failure(code: str, found: str, advice: str, *, asked: str = "") -> Finding:
    """Return a finding that keeps clients from IMDS, or lets the wrong ones reach it."""
    return Finding(Status.FAILURE, found, code, advice, asked)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of these findings; what was not checked is no worse than what is well."""
    order = [Status.OK, Status.WARNING, Status.FAILURE]
    found = (finding.status for finding in findings if finding.status is not Status.SKIPPED)
    return max(found, key=order.index, default=Status.OK)
