"""Read the access file from the disk, and the users and groups of this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from itertools import chain
from pathlib import Path

from imdsproxy.access.document import AccessFileError
from imdsproxy.access.file import read_rules
from imdsproxy.access.rules import Rules
from imdsproxy.access.subject import Names
from imdsproxy.errors import SettingsError

_LARGEST = 1_048_576  # bytes
# Opening a pipe without a writer waits for one, unless it may not.
_OPENED = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def load_file(path: str) -> Rules:
    """Return the rules of a file, as they are written. Raises SettingsError."""
    try:
        descriptor = os.open(path, _OPENED)
        try:
            why = _doubt(descriptor, Path(path))
            with open(descriptor, "rb", closefd=False) as file:
                content = b"" if why else file.read(_LARGEST + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unusable(path, f"{error.strerror or error}; name a file that the proxy's user may read") from None
    if why is not None:
        raise _unusable(path, why)
    if len(content) > _LARGEST:
        raise _unusable(path, f"it has more than {_LARGEST} bytes, which is too long for rules; name another file")
    try:
        return read_rules(content.decode("utf-8-sig"), Path(path).name)
    except UnicodeDecodeError as error:
        raise _unusable(path, f"it is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except AccessFileError as error:
        raise _unusable(path, str(error)) from None


def _doubt(descriptor: int, path: Path) -> str | None:
    """Return why the rules in an open file must not be obeyed, or None."""
    if sys.platform != "linux":
        return None
    else:  # noqa: RET505  # the type checker takes only a branch as unreachable
        from imdsproxy.files import doubt_of_rules  # noqa: PLC0415  # Linux only

        # The folder of the file itself: mounted configuration is a link to it.
        folder = Path(os.path.realpath(path)).parent.stat()
        return doubt_of_rules(os.fstat(descriptor), folder, os.geteuid())


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
    if sys.platform == "win32" and rules.strict_names and (why := _not_on_windows(rules)) is not None:
        raise _unusable(path, why)
    names = names_in(rules)
    absent = missing(rules, names)
    if absent and rules.strict_names:
        raise _unusable(path, f"this machine has no {absent[0]}; create it, or name its number")
    return rules.resolved(names), [f"IMDSPROXY_ACCESS_FILE={path}: this machine has no {what}" for what in absent]


def names_in(rules: Rules, *users: str) -> Names:
    """Return what this machine's user database says about the names in rules, and about some further users.

    Each name is looked up by itself, because a directory service need not list all of its users.
    """
    wanted = {*users, *(user for user in rules.users if isinstance(user, str))}
    if sys.platform == "win32":
        from imdsproxy.access.windows_users import sids_of  # noqa: PLC0415  # exists on Windows only

        return Names(sids_of(wanted), {})
    else:  # noqa: RET505  # the type checker takes only a branch as unreachable
        import grp  # noqa: PLC0415  # Windows has none
        import pwd  # noqa: PLC0415  # as above

        found: dict[str, int | str] = {}
        groups: dict[str | int, int] = {}
        for user in wanted:
            with contextlib.suppress(KeyError):
                found[user] = pwd.getpwnam(user).pw_uid
        for group in rules.groups:
            with contextlib.suppress(KeyError):
                groups[group] = (grp.getgrgid(group) if isinstance(group, int) else grp.getgrnam(group)).gr_gid
        return Names(found, groups)


def missing(rules: Rules, names: Names) -> list[str]:
    """Return the users and groups in rules, in words, that this machine does not have."""
    return list(dict.fromkeys(chain.from_iterable(who.unresolved(names) for rule in rules.rules for who in rule.who)))


def _not_on_windows(rules: Rules) -> str | None:
    """Return why rules cannot be compared on Windows, or None."""
    for rule in rules.rules:
        for who in rule.who:
            if who.groups:
                return f'the rule "{rule.name}" names groups, which are not looked up on Windows; name users instead'
            if who.unix_users:
                return f'the rule "{rule.name}" names unix_user, and the proxy has no Unix socket on Windows'
            number = next((user for user in who.users if isinstance(user, int)), None)
            if number is not None:
                return (
                    f'the rule "{rule.name}" names user {number}, and users of Windows have no numbers; '
                    "write the name, or the SID such as S-1-5-18"
                )
    return None


def _unusable(path: str, reason: str) -> SettingsError:
    return SettingsError(f"IMDSPROXY_ACCESS_FILE={path}: {reason}")
