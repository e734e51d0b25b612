"""Write the findings: for people as aligned lines, for programs as JSON.

`docs/troubleshooting.md` describes the JSON. Its `version` grows when a reader of the previous one would misread it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from imdsproxy import __version__
from imdsproxy.cli.check.finding import EXIT, NOT_CHECKED, Finding, Status, worst
from imdsproxy.errors import printable

VERSION = 1
_COLOURS = {Status.OK: "32", Status.SKIPPED: "2", Status.WARNING: "33", Status.FAILURE: "31"}


def text(findings: Mapping[str, Finding], *, colour: bool) -> str:
    """Return a line for each step, below it the next thing to do, and the count of warnings and failures.

    Steps that depend on an earlier one that failed are only counted.
    """
    wide = max(map(len, Status))
    long = max(map(len, findings))
    lines = []
    for step, finding in findings.items():
        if finding.code == NOT_CHECKED:
            continue
        status = _painted(finding.status.ljust(wide), finding.status) if colour else finding.status.ljust(wide)
        asked = f" (asked {finding.asked})" if finding.asked and finding.asked not in finding.found else ""
        lines.append(f"{status}  {step.ljust(long)}  {printable(finding.found)}{printable(asked)}")
        if finding.advice:
            lines.append(f"{' ' * (wide + long + 4)}next: {printable(finding.advice)}")
    return "\n".join([*lines, "", _total(findings)]) + "\n"


def as_json(findings: Mapping[str, Finding]) -> str:
    """Return the findings as one JSON object."""
    status = worst(findings.values())
    report = {
        "version": VERSION,
        "imdsproxy": __version__,
        "status": status,
        "exit_status": EXIT[status],
        "steps": [
            {
                "step": step,
                "status": finding.status,
                "code": finding.code or None,
                "found": finding.found,
                "next": finding.advice or None,
                "asked": finding.asked or None,
            }
            for step, finding in findings.items()
        ],
    }
    return json.dumps(report, indent=2) + "\n"


def _total(findings: Mapping[str, Finding]) -> str:
    counts = {status: sum(finding.status is status for finding in findings.values()) for status in Status}
    parts = [
        f"{count} {status}{'s' if count > 1 else ''}"
        for status in (Status.FAILURE, Status.WARNING)
        if (count := counts[status])
    ]
    skipped = counts[Status.SKIPPED]
    unchecked = f"; {skipped} not checked" if skipped else ""
    return f"{', '.join(parts) or 'all well'}{unchecked}"


def _painted(word: str, status: Status) -> str:
    return f"\x1b[{_COLOURS[status]}m{word}\x1b[0m"
