"""The access rules, and the pods that they can name."""

from __future__ import annotations

from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning


def judge_access(facts: Facts) -> Finding:
    """Check that the access file can be obeyed, and say what it does."""
    access = facts.access
    if access is None:
        return ok("none is configured: every client gets everything")
    if access.problem == "denied":
        return skipped(
            "access-file-unknown", f"{access.path} cannot be read: {access.words}", "run this check as the proxy's user"
        )
    if access.problem:
        advice = "correct it; a proxy does not start with it, and a running one keeps its earlier rules"
        return failure("access-file-unusable", f"{access.path} cannot be used: {access.words}", advice)
    found = f"{access.path}: {access.rules} rules, default {access.default}"
    if access.mode != "enforce":
        advice = "set IMDSPROXY_ACCESS_MODE=enforce, and the mode of the file, once the log has nothing unexpected"
        return warning("access-not-enforced", f"{found}; the mode is {access.mode}, so nothing is refused", advice)
    if access.warnings:
        return warning(
            "access-names-unknown", f"{found}; {access.warnings[0]}", "create it, or remove it from the file"
        )
    return ok(found)


def judge_pods(facts: Facts) -> Finding:
    """Check that the pods of the node can be watched. The API server is not asked."""
    node = facts.config.pods_of_node
    if node is None:
        return ok("no pods are watched")
    if facts.pods_problem:
        advice = "follow the advice in it; a proxy does not start otherwise"
        return failure("pods-unusable", f"the pods of {node} cannot be watched: {facts.pods_problem}", advice)
    return ok(f"the pods of {node}, with the credentials of this pod")
