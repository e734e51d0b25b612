"""Read the access file from the disk, and the users and groups of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from imdsproxy.access.document import AccessFileError
from imdsproxy.access.file import read_rules
from imdsproxy.access.rules import Rules
from imdsproxy.access.subject import Names
from imdsproxy.errors import SettingsError

_LARGEST = 1_048_576  # bytes


def load_file(path: str) -> Rules:
    """Return the rules of a file, as they are written. Raises SettingsError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    if len(content) > _LARGEST:
        raise _unusable(path, f"it has more than {_LARGEST} bytes")
    try:
        return read_rules(content.decode("utf-8-sig"), Path(path).name)
    except UnicodeDecodeError as error:
        raise _unusable(path, f"it is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except AccessFileError as error:
        raise _unusable(path, str(error)) from None


def rules_in_force(path: str, *, pods_known: bool = False) -> tuple[Rules, list[str]]:
    """Return the rules of a file for this machine, with the ids of users and groups, and warnings.

    Args:
        path: The file.
        pods_known: Whether the namespace and service account of a pod are known by its address.

    Raises:
        SettingsError: The file is not sound, or names what can never match here.
    """
    rules = load_file(path)
    if rules.of_pods is not None and not pods_known:
        raise _unusable(
            path,
            f'the rule "{rules.of_pods}" names pods (namespace, service_account), and this proxy does not know the '
            "pods of its clients; set IMDSPROXY_PODS_OF_NODE to its Kubernetes node, or name an address range instead",
        )
    names = machine_names()
    missing = list(dict.fromkeys(chain.from_iterable(_missing(rules, names))))
    if missing and rules.strict_names:
        raise _unusable(path, f"this machine has no {missing[0]}; create it, or name its number")
    return rules.resolved(names), [f"IMDSPROXY_ACCESS_FILE={path}: this machine has no {what}" for what in missing]


def machine_names() -> Names:
    """Return the users and groups of this machine, as its user database lists them."""
    if sys.platform == "win32":
        return Names({}, {})
    import grp  # noqa: PLC0415  # Windows has none
    import pwd  # noqa: PLC0415  # as above

    everyone = pwd.getpwall()
    users = {user.pw_name: user.pw_uid for user in everyone}
    groups: dict[str | int, frozenset[int]] = {}
    for group in grp.getgrall():
        members = {user.pw_uid for user in everyone if user.pw_gid == group.gr_gid}
        members.update(users[name] for name in group.gr_mem if name in users)
        groups[group.gr_name] = groups[group.gr_gid] = frozenset(members)
    return Names(users, groups)


def _missing(rules: Rules, names: Names) -> Iterable[list[str]]:
    return (who.unresolved(names) for rule in rules.rules for who in rule.who)


def _unusable(path: str, reason: str) -> SettingsError:
    return SettingsError(f"IMDSPROXY_ACCESS_FILE={path}: {reason}")
