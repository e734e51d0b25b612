"""The handover file: whether a proxy can leave entries there, and read those that are there."""

from __future__ import annotations

from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning


def judge_handover_file(facts: Facts) -> Finding:
    """Check that the handover file can be used."""
    file = facts.handover_file
    if file is None:
        return ok("none is configured: a restart begins with an empty cache")
    match file.problem:
        case "denied":
            advice = "run this check as the proxy's user"
            return skipped("handover-file-unknown", f"{file.path} cannot be read: {file.words}", advice)
        case "folder":
            advice = "name a file in a folder that the proxy's user can write to: a tmpfs such as /run/imdsproxy"
            return failure("handover-file-folder", f"no file can be made at {file.path}: {file.words}", advice)
        case "unused":
            advice = "nothing, unless it stays: the next clean end of the proxy replaces a file of its own"
            return warning("handover-file-unused", f"{file.path} is not used: {file.words}", advice)
    if file.entries is None:
        return ok(f"{file.path} is not there; a proxy makes it at its end, and the next one removes it")
    return ok(f"{file.path} has {file.entries} entries for the next start")
