"""`imdsproxy access explain`: what the access rules say about a request, without a running proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple

from imdsproxy.access.decision import decide, explain
from imdsproxy.access.groups import groups_of
from imdsproxy.access.loading import load_file, missing, names_in
from imdsproxy.access.rules import DEFAULT, RESERVED, Mode, Rules
from imdsproxy.access.subject import Names, Subject, program
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.messages import Refusal, Target
from imdsproxy.protocol.target import read_target

ALLOWED, REFUSED = 0, 1


class Explanation(NamedTuple):
    """The text for the terminal, the exit status, and notes for the user, one line each."""

    text: str
    status: int
    notes: list[str]


def explained(file: str | None, mode: str, options: Mapping[str, str]) -> Explanation:
    """Return what the rules of a file say.

    Args:
        file: The access file.
        mode: `ACCESS_MODE`.
        options: The command's flags: who asks, and for what.

    Raises:
        SettingsError: There is no file, it is not sound, or a flag makes no sense.
    """
    if file is None:
        raise SettingsError("no access rules are set; name the file with --access-file or IMDSPROXY_ACCESS_FILE")
    target = _target(options.get("path"))
    rules = load_file(file)
    names = names_in(rules, *(options[flag] for flag in ("user", "unix-user") if flag in options))
    notes = _notes(rules, names, options)
    rules = rules.resolved(names)
    subject = _subject(options, names)
    method = options.get("method", "GET").upper()
    verdict = decide(rules, subject, method, target)
    lines = [_headline(rules, mode, allowed=verdict.allowed, rule=verdict.rule)]
    lines += [f"  {kind}: {words}" for kind, words in (("client", verdict.who), ("grant", verdict.what)) if words]
    lines += ["", *explain(rules, subject, method, target)]
    return Explanation("\n".join(lines) + "\n", ALLOWED if verdict.allowed else REFUSED, notes)


def _notes(rules: Rules, names: Names, options: Mapping[str, str]) -> list[str]:
    """Return what is as it says on another machine only: the rules can be for one with other users."""
    absent = missing(rules, names)
    then = "a proxy does not start here with this file" if rules.strict_names else "no client here is meant by it"
    notes = [f"a rule names {absent[0]}, which this machine does not have, so {then}"] if absent else []
    for flag in ("user", "unix-user"):
        user = options.get(flag)
        if user is not None and _number(user, names) is None:
            rest = "" if "group" in options else "; name its groups with --group"
            notes.append(f"--{flag}={user[:80]!a} is no user of this machine, so only rules that name it mean it{rest}")
    return notes


def _number(user: str, names: Names) -> int | str | None:
    return int(user) if user.isascii() and user.isdigit() else names.users.get(user)


def _headline(rules: Rules, mode: str, *, allowed: bool, rule: str) -> str:
    by = {DEFAULT: "by default", RESERVED: "because the path is reserved"}.get(rule, f"by rule {rule}")
    line = f"{'allowed' if allowed else 'refused'} {by}"
    if allowed:
        return line
    if rules.mode is Mode.DISABLED:
        return f"{line}, but the file disables its rules: the request is served"
    if Mode.AUDIT in {rules.mode, Mode(mode)}:
        return f"{line}, but only audited: the request is served, logged and counted"
    return line


def _target(path: str | None) -> Target:
    if path is None:
        raise SettingsError("--path is missing; write the target, such as --path '/metadata/identity/oauth2/token'")
    target = read_target(path.encode("utf-8"))
    if isinstance(target, Refusal):
        raise SettingsError(f"--path={path[:80]!a}: {target.description}")
    return target


def _subject(options: Mapping[str, str], names: Names) -> Subject:
    user = options.get("user", options.get("unix-user"))
    number = None if user is None else _number(user, names)
    groups: frozenset[str | int] | None = None
    if "group" in options:
        groups = frozenset(options["group"].split(","))
    elif isinstance(number, int):
        groups = frozenset[str | int](groups_of(number) or ()) or None
    address = options.get("address")
    if address is not None:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise SettingsError(f"--address={address[:80]!a} is not an IP address") from None
    namespace, _, account = options.get("service-account", "").partition("/")
    return Subject(
        user=number,
        user_name=user,
        groups=groups,
        executable=program(options["executable"]) if "executable" in options else None,
        address=address,
        unix="unix-user" in options,
        namespace=options.get("namespace", namespace or None),
        service_account=account or None,
    )
