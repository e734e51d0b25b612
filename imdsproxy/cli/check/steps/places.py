"""The settings, and the addresses that the proxy listens at."""

from __future__ import annotations

from imdsproxy.cli.check.facts import Facts, Place
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning

_JUDGED_BY = tuple(
    f"IMDSPROXY_{name}"
    for name in ("UPSTREAM", "BUDGET_FILE", "BUDGET_REQUESTS", "REQUIRE_METADATA_HEADER", "ALLOW", "DENY")
)


def judge_settings(facts: Facts) -> Finding:
    """Check that the proxy would start with these settings, and whether one is doubtful."""
    if facts.start_error:
        return failure("settings-start", facts.start_error, "correct the setting; imdsproxy does not start with it")
    if facts.warnings:
        return warning(
            "settings-doubtful", "; ".join(facts.warnings), "change them unless they are intended; imdsproxy starts"
        )
    elsewhere = _other_settings(facts)
    if elsewhere:
        return skipped(
            "settings-elsewhere",
            f"the running proxy has other settings than this check: {elsewhere}",
            "run the check with the proxy's settings, because it judges by its own",
        )
    if facts.differing:
        changed = (f"{each.name} ({each.source})" for each in facts.differing)
        return ok(f"differ from their defaults: {', '.join(changed)}")
    return ok("all at their defaults")


def _other_settings(facts: Facts) -> str:
    """Return those settings of the running proxy that this check judges by and has otherwise."""
    if facts.proxy is None:
        return ""
    own = {each.name: each.value for each in facts.differing}
    running = dict(facts.proxy.settings)
    names = [name for name in _JUDGED_BY if running.get(name) != own.get(name)]
    return ", ".join(f"{name}={running.get(name, 'at its default')}" for name in names)


def judge_port(facts: Facts) -> Finding:
    """Check that the TCP port is free, or that an imdsproxy listens there."""
    return _place(facts, "PORT", "no port is configured")


def judge_admin_port(facts: Facts) -> Finding:
    """Check that the admin port is free, or that an imdsproxy listens there."""
    return _place(facts, "ADMIN_PORT", "no admin port is configured")


def judge_socket(facts: Facts) -> Finding:
    """Check that the Unix socket can be made, or that an imdsproxy listens there."""
    return _place(facts, "UDS", "no Unix socket is configured")


_CODES = {"PORT": "port", "ADMIN_PORT": "admin-port", "UDS": "socket"}
_REMEDIES = {
    "PORT": "IMDSPROXY_HOST must be an address of this machine, and a port below 1024 needs root",
    "ADMIN_PORT": "IMDSPROXY_ADMIN_HOST must be an address of this machine, and a port below 1024 needs root",
    "UDS": "its folder must exist, the proxy's user must be able to write there, and no other file may have this name",
}


def _place(facts: Facts, setting: str, unset: str) -> Finding:
    listener = facts.listener(setting)
    if listener is None:
        return ok(unset)
    users = ", ".join(map(str, listener.processes))
    by = f": {users}" if users else ""
    if listener.place is Place.OURS:
        return ok(f"an imdsproxy answers at {listener.name}{by}")
    if listener.place is Place.FREE:
        return ok(f"{listener.name} is free: no proxy runs there{f' ({listener.why})' if listener.why else ''}")
    if listener.place is Place.TAKEN:
        return failure(
            f"{_CODES[setting]}-taken",
            f"{listener.name} is taken by another program{by}{f' ({listener.why})' if listener.why else ''}",
            f"stop that program, or choose another IMDSPROXY_{setting}",
        )
    if listener.place is Place.ABSENT:
        return warning(
            f"{_CODES[setting]}-absent",
            f"no interface has the address of {listener.name} yet; clients reach the proxy once one has",
            f"imdsproxy address --address {listener.name.partition(':')[0]}, for as long as the proxy runs",
        )
    return failure(
        f"{_CODES[setting]}-unusable", f"{listener.name} cannot be listened on: {listener.why}", _REMEDIES[setting]
    )
