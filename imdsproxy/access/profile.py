"""Read a profile in the form of Azure's Metadata Security Protocol.

The form is that of an in-VM access control profile, as Azure's guest proxy agent reads it: its structures are in
`key_keeper/key.rs`, its decision in `proxy/authorization_rules.rs` (Azure/GuestProxyAgent, 2025 and 2026), its
properties in the Compute API (`GalleryInVMAccessControlProfileVersionProperties`):

- `privileges` are paths, with `queryParameters` that a request must have;
- `roles` are lists of privileges, `identities` describe processes, `roleAssignments` join the two;
- a privilege of an assigned role is for the identities of its assignments alone, whatever `defaultAccess` says;
- `defaultAccess` applies to requests that no such privilege covers;
- `mode` is enforce, audit or disabled; names of modes, paths and values of parameters have no case.

Where this reading is stricter than the agent's, it is so because the proxy would otherwise hand out more than the
profile names: a query that can be read in two ways is not covered by a privilege with parameters, and a reserved path
reserves its parents too, whose answer contains it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from imdsproxy.access.document import Node
from imdsproxy.access.paths import read_path
from imdsproxy.access.query import AUDIENCE_PARAMETER, IDENTITY_PARAMETERS, comparable
from imdsproxy.access.rules import OWN_NAMES, Grant, Mode, Rule, Rules, identity
from imdsproxy.access.subject import Who

_LISTS = frozenset({"privileges", "roles", "identities", "roleAssignments"})
_ITEM = frozenset({"defaultAccess", "mode", "id", "rules"})
# Properties of the Compute API's resource around the item, which say nothing about access.
_OF_THE_RESOURCE = frozenset(
    {
        *("name", "type", "location", "tags", "apiVersion", "systemData", "dependsOn"),
        *("targetLocations", "excludeFromLatest", "provisioningState", "publishedDate", "replicationStatus"),
    }
)
_SIGNS = _LISTS | {"defaultAccess", "properties", "imds"}
_PRIVILEGE = frozenset({"name", "path", "queryParameters"})
_ROLE = frozenset({"name", "privileges"})
_IDENTITY = frozenset({"name", "userName", "groupName", "exePath", "processName"})
_ASSIGNMENT = frozenset({"role", "identities"})
Value = TypeVar("Value")

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def is_profile(top: Node) -> bool:
    """Return whether a document has the form of a profile."""
    value = top.value
    if not isinstance(value, dict):
        return False
    return not _SIGNS.isdisjoint(value) or isinstance(value.get("rules"), dict)


def read_profile(top: Node) -> Rules:
    """Return the rules of a profile. Raises AccessFileError."""
    keys = top.table(_ITEM | _OF_THE_RESOURCE | {"properties", "imds", "wireserver", "hostga"} | _LISTS)
    for inner in ("properties", "imds"):  # the resource, or the agent's document for several endpoints
        if inner in keys:
            return read_profile(keys[inner])
    lists = keys["rules"].table(_LISTS) if "rules" in keys else {key: keys[key] for key in _LISTS if key in keys}
    privileges = {name: _grant(node) for name, node in _named(lists, "privileges")}
    roles = {name: _role(node, privileges) for name, node in _named(lists, "roles")}
    identities = {name: _who(node) for name, node in _named(lists, "identities")}
    rules = tuple(_assignments(lists, roles, identities))
    return Rules(
        rules,
        keys["defaultAccess"].word(frozenset({"allow", "deny"})) == "allow" if "defaultAccess" in keys else False,
        Mode(keys["mode"].word(frozenset(Mode))) if "mode" in keys else Mode.ENFORCE,
        tuple(dict.fromkeys(grant for rule in rules for grant in rule.grants)),
        strict_names=False,
    )


def _named(lists: Mapping[str, Node], key: str) -> Iterator[tuple[str, Node]]:
    """Yield the items of a list with their names, which must differ."""
    seen = set()
    for node in lists[key].tables() if key in lists and lists[key].value is not None else ():
        if not isinstance(node.value, dict) or "name" not in node.value:
            raise node.error(f"an item of {key} must be an object with a name")
        name = _text(node, "name")
        if name in seen:
            raise node.error(f'the name "{name[:80]}" occurs twice in {key}')
        seen.add(name)
        yield name, node


def _text(node: Node, key: str) -> str:
    value = node.value[key] if isinstance(node.value, dict) and key in node.value else None
    return Node(value, (*node.place, key), node.lines).text()


def _grant(node: Node) -> Grant:
    keys = node.table(_PRIVILEGE)
    if "path" not in keys:
        raise node.error("a privilege must have a path")
    path = read_path(keys["path"])
    given = keys.get("queryParameters")
    if given is None or given.value is None:
        return Grant(path)
    if not isinstance(given.value, dict):
        raise given.error("queryParameters must be an object of names and values")
    identities, audiences, others = set(), set(), []
    for name in given.value:
        lower, value = name.lower(), _text(given, name)
        if lower in IDENTITY_PARAMETERS:
            identities.add(identity(IDENTITY_PARAMETERS[lower], value))
        elif lower == AUDIENCE_PARAMETER:
            audiences.add(comparable(value))
        else:
            others.append((lower, value.lower()))
    if len(identities) > 1 or len(audiences) > 1:
        raise given.error("queryParameters name two identities or audiences, and no request has both")
    return Grant(path, True, frozenset(identities), frozenset(audiences), tuple(others))  # noqa: FBT003  # `below`


def _role(node: Node, privileges: Mapping[str, Grant]) -> list[Grant]:
    keys = node.table(_ROLE)
    if "privileges" not in keys:
        raise node.error("a role must have privileges")
    return [_known(item, privileges, "privilege") for item in keys["privileges"].items()]


def _who(node: Node) -> Who:
    keys = node.table(_IDENTITY)
    given = {key: keys[key].text() for key in keys if key != "name" and keys[key].value is not None}
    if not given:
        raise node.error("an identity must have a userName, groupName, exePath or processName")

    def one(key: str) -> frozenset[str]:
        return frozenset({given[key]} if key in given else ())

    return Who(
        users=frozenset[str | int](one("userName")),
        groups=frozenset[str | int](one("groupName")),
        executables=one("exePath"),
        processes=one("processName"),
    )


def _assignments(
    lists: Mapping[str, Node], roles: Mapping[str, list[Grant]], identities: Mapping[str, Who]
) -> Iterator[Rule]:
    """Yield a rule for each assignment, named after its role."""
    names: set[str] = set(OWN_NAMES)
    given = lists.get("roleAssignments")
    for node in given.tables() if given is not None and given.value is not None else ():
        keys = node.table(_ASSIGNMENT)
        if "role" not in keys or "identities" not in keys:
            raise node.error("a role assignment must have a role and identities")
        grants = _known(keys["role"], roles, "role")
        who = tuple(_known(item, identities, "identity") for item in keys["identities"].items())
        yield Rule(_unused(keys["role"].text(), names), who, tuple(grants))


def _known(node: Node, values: Mapping[str, Value], kind: str) -> Value:
    name = node.text()
    if name not in values:
        raise node.error(f'there is no {kind} with the name "{name[:80]}"')
    return values[name]


def _unused(role: str, names: set[str]) -> str:
    """Return a name for a rule that header fields and labels can hold, and that no other rule has."""
    base = _NOT_IN_A_NAME.sub("-", role)[:56].strip(".-") or "role"
    name, number = base, 1
    while name in names:
        number += 1
        name = f"{base}-{number}"
    names.add(name)
    return name
