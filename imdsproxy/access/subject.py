"""Who asks, and whether a rule means this client.

A fact about a client can be unknown: another user's executable, the user behind an address of another machine. So
a comparison has three results, as in SQL: True, False, and None for unknown. `decision` treats unknown as no where a
rule grants, and as yes where a rule refuses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from imdsproxy.protocol.host import plain
from imdsproxy.protocol.peer import Peer, PeerKind

Ids = frozenset[str | int]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Subject(NamedTuple):
    """What the rules compare of a client. Every unknown part is None."""

    user: int | str | None = None
    """The user id; on Windows a SID."""
    user_name: str | None = None
    """The user's name, where no id is known: `imdsproxy access explain` on another machine."""
    groups: frozenset[str | int] | None = None
    """The groups of the user, each by its number or its name. All of them, or None."""
    executable: str | None = None
    """The absolute path of the program, as `program` writes it."""
    address: str | None = None
    """The address of a TCP connection."""
    unix: bool = False
    """Whether it came by a Unix socket."""
    namespace: str | None = None
    """The Kubernetes namespace of the pod."""
    service_account: str | None = None
    """The name of the pod's service account in that namespace."""


UNKNOWN_SUBJECT = Subject()
"""The client of whom nothing is known."""


def subject_of(peer: Peer) -> Subject:
    """Return what the rules compare of a peer. What a client writes of itself (`Imdsproxy-Via`) is not among it."""
    executable = peer.executable if peer.executable is None else program(peer.executable)
    return Subject(user=peer.user, executable=executable, address=peer.address, unix=peer.kind is PeerKind.UNIX)


def program(path: str) -> str:
    """Return the path of a program in the one spelling that is compared: Windows' paths have no case."""
    return path.replace("/", "\\").lower() if path[1:2] == ":" else path


@dataclass(frozen=True, slots=True)
class Names:
    """What the user database of a machine says about the names in rules."""

    users: Mapping[str, int | str]
    """User ids by name."""
    groups: Mapping[str | int, int]
    """The numbers of groups, by name and by number."""


@dataclass(frozen=True, slots=True)
class Who:
    """The clients that a rule means: those that have one of the values of each list that is not empty."""

    anyone: bool = False
    """Whether it means every client. All lists are empty then."""
    users: frozenset[str | int] = frozenset()
    unix_users: frozenset[str | int] = frozenset()
    """Users at the other end of a Unix socket. Clients over TCP are not meant."""
    groups: frozenset[str | int] = frozenset()
    executables: frozenset[str] = frozenset()
    processes: frozenset[str] = frozenset()
    """Last segments of executables' paths."""
    addresses: tuple[Network, ...] = ()
    namespaces: frozenset[str] = frozenset()
    service_accounts: frozenset[tuple[str, str]] = frozenset()
    """Pairs of a namespace and a name."""

    @property
    def of_pods(self) -> bool:
        """Whether it can be compared only where pods are known."""
        return bool(self.namespaces or self.service_accounts)

    @property
    def of_users(self) -> bool:
        """Whether it needs the user of a client."""
        return bool(self.users or self.unix_users or self.groups)

    @property
    def of_groups(self) -> bool:
        """Whether it needs the groups of a client's user."""
        return bool(self.groups)

    @property
    def of_programs(self) -> bool:
        """Whether it needs the program of a client."""
        return bool(self.executables or self.processes)

    def matches(self, subject: Subject) -> bool | None:
        """Return whether it means this client; None if that depends on something unknown."""
        results = [result for _, result in self.compared(subject)]
        return False if False in results else None if None in results else True

    def compared(self, subject: Subject) -> list[tuple[str, bool | None]]:
        """Return each list in words, with the result of its comparison."""
        found: list[tuple[str, bool | None]] = []
        if self.users:
            found.append((_written("user", self.users), _is_user(subject, self.users)))
        if self.unix_users:
            result = _is_user(subject, self.unix_users) if subject.unix else False
            found.append((_written("unix_user", self.unix_users), result))
        if self.groups:
            found.append((_written("group", self.groups), self._is_member(subject)))
        if self.executables:
            found.append((_written("executable", self.executables), _among(subject.executable, self.executables)))
        if self.processes:
            process = None if subject.executable is None else subject.executable.rpartition("/")[2]
            found.append((_written("process", self.processes), _among(process, self.processes)))
        if self.addresses:
            found.append((_written("address", map(str, self.addresses)), _within(subject, self.addresses)))
        if self.namespaces:
            found.append((_written("namespace", self.namespaces), _among(subject.namespace, self.namespaces)))
        if self.service_accounts:
            wanted = [f"{namespace}/{name}" for namespace, name in self.service_accounts]
            found.append((_written("service_account", wanted), self._is_service_account(subject)))
        return found or [("anyone", True)]

    def resolved(self, names: Names) -> Who:
        """Return the same with the ids of its users and groups. Names that the machine does not have stay names."""
        return replace(
            self,
            users=_with_ids(self.users, names.users),
            unix_users=_with_ids(self.unix_users, names.users),
            groups=_with_ids(self.groups, names.groups),
        )

    def unresolved(self, names: Names) -> list[str]:
        """Return the users and groups, in words, that this machine does not have."""
        users = {name for name in self.users | self.unix_users if isinstance(name, str) and name not in names.users}
        groups = {group for group in self.groups if group not in names.groups}
        return [
            *(f'user "{name}"' for name in sorted(users)),
            *(f'group "{name}"' for name in sorted(map(str, groups))),
        ]

    def _is_member(self, subject: Subject) -> bool | None:
        return None if subject.groups is None else not subject.groups.isdisjoint(self.groups)

    def _is_service_account(self, subject: Subject) -> bool | None:
        if subject.namespace is None or subject.service_account is None:
            return None
        return (subject.namespace, subject.service_account) in self.service_accounts


def _is_user(subject: Subject, users: frozenset[str | int]) -> bool | None:
    if subject.user is None and subject.user_name is None:
        return None
    return subject.user in users or subject.user_name in users


def _among(value: str | None, values: frozenset[str]) -> bool | None:
    return None if value is None else value in values


def _within(subject: Subject, networks: tuple[Network, ...]) -> bool | None:
    if subject.address is None:
        return False if subject.unix else None
    try:
        address = plain(subject.address)  # a v4-mapped one is an IPv4 client of an IPv6 listener
    except ValueError:
        return None
    return any(address in network for network in networks)


def _with_ids(names: Ids, ids: Mapping[Any, int | str]) -> Ids:
    """Return the names, and the ids of those that are known."""
    return names | {ids[name] for name in names if name in ids}


def _written(kind: str, values: Iterable[str | int]) -> str:
    return f"{kind} {' or '.join(sorted(map(str, values)))}"
