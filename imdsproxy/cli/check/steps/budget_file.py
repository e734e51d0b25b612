"""The budget file, and who else shares it."""

from __future__ import annotations

from imdsproxy.cli.check.facts import BudgetFile, Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning

_PROBLEMS = {
    "folder": ("budget-file-folder", "make its folder, writable for the proxy's user: a tmpfs such as /run/imdsproxy"),
    "distrusted": ("budget-file-distrusted", "follow the advice in it"),
    "foreign": ("budget-file-foreign", "name another file, because this one holds something else"),
    "version": ("budget-file-version", "run one version of imdsproxy on this VM, or name a file for each version"),
    "clock": ("budget-file-clock", "start the container without a time namespace of its own"),
}


def judge_budget_file(facts: Facts) -> Finding:
    """Check that the budget file can be used, and name the processes that share it."""
    file = facts.budget_file
    if file is None:
        return ok("none is configured: the proxy keeps a budget of its own, as if no other ran on this VM")
    if file.problem == "denied":
        return skipped(
            "budget-file-unknown", f"{file.path} cannot be read: {file.words}", "run this check as the proxy's user"
        )
    if file.problem:
        code, advice = _PROBLEMS[file.problem]
        return failure(code, f"{file.path} cannot be used: {file.words}", advice)
    if not file.exists:
        return ok(f"{file.path} is not there yet; the first proxy creates it")
    shared = _sharers(file)
    if file.damaged:
        advice = "find out what writes to it; a proxy starts it again by itself, with every permit taken for a while"
        return warning("budget-file-damaged", f"{file.path} is damaged{shared}", advice)
    if file.exposed:
        advice = "name a file in a folder that only the proxies' users and groups can write to"
        return warning(
            "budget-file-exposed", f"{file.path} is in a folder that every user can write to{shared}", advice
        )
    if len(file.settings) > 1:
        values = ", ".join(f"{requests} in {window:g} s" for requests, window in file.settings)
        advice = "give all proxies the same BUDGET_REQUESTS and BUDGET_WINDOW; now the strictest of them apply"
        return warning(
            "budget-file-settings", f"{file.path} has proxies with different budgets: {values}{shared}", advice
        )
    return ok(f"{file.path}{shared}")


def _sharers(file: BudgetFile) -> str:
    if file.processes:
        return f", shared by {', '.join(map(str, file.processes))}"
    return ", in use by a proxy that this user cannot see" if file.settings else ", used by no process that can be seen"
