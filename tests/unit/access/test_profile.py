"""A profile in the form of Azure's Metadata Security Protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imdsproxy.access.decision import decide
from imdsproxy.access.document import AccessFileError
from imdsproxy.access.file import read_rules
from imdsproxy.access.rules import Mode, Rules
from imdsproxy.access.subject import Names, Subject
from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target

LISTS: dict[str, Any] = {
    "privileges": [
        {"name": "network", "path": "/metadata/instance/network"},
        {
            "name": "vault",
            "path": "/metadata/identity",
            "queryParameters": {"Resource": "https://Vault.azure.net/", "client_id": "AB", "api-version": "2018-02-01"},
        },
        {"name": "unassigned", "path": "/metadata/scheduledevents", "queryParameters": None},
    ],
    "roles": [
        {"name": "Net & Vault", "privileges": ["network", "vault"]},
        {"name": "Net Vault", "privileges": ["network"]},
        {"name": "none", "privileges": ["unassigned"]},
    ],
    "identities": [
        {"name": "app", "userName": "web", "exePath": "/usr/bin/app"},
        {"name": "agent", "groupName": "ops", "processName": None},
        {"name": "tool", "processName": "tool"},
    ],
    "roleAssignments": [
        {"role": "Net & Vault", "identities": ["app", "agent"]},
        {"role": "Net Vault", "identities": ["tool"]},
    ],
}
ITEM = {"defaultAccess": "Allow", "mode": "Audit", "id": "a", "rules": LISTS}
NAMES = Names({"web": 33}, {"ops": 40})
APP, TOOL = Subject(user=33, executable="/usr/bin/app"), Subject(user=9, executable="/x/tool")
AGENT = Subject(user=40, groups=frozenset({40}))
STRANGER = Subject(user=9, executable="/x/y")
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01"  # a path


def rules(document: object) -> Rules:
    return read_rules(json.dumps(document, indent=1), "profile.json").resolved(NAMES)


def allowed(found: Rules, subject: Subject, path: str) -> bool:
    target = read_target(path.encode("ascii"))
    assert isinstance(target, Target)
    return decide(found, subject, "GET", target).allowed


@pytest.mark.parametrize(
    "document",
    [
        ITEM,
        {"properties": ITEM, "name": "1.0.0", "location": "westeurope", "tags": {}},
        {"properties": {**ITEM, "targetLocations": [], "excludeFromLatest": False}},
        {"imds": ITEM, "wireserver": {"defaultAccess": "allow"}},
        {"defaultAccess": "allow", "mode": "audit", **LISTS},
    ],
)
def test_profile_is_read_in_each_of_its_wrappings(document: object) -> None:
    found = rules(document)
    assert found.mode is Mode.AUDIT
    assert found.default_allows
    assert not found.strict_names
    assert [rule.name for rule in found.rules] == ["Net-Vault", "Net-Vault-2"]


@pytest.mark.parametrize(
    ("subject", "path", "expected"),
    [
        (APP, "/metadata/instance/network/interface", True),
        (AGENT, "/metadata/instance/network", True),
        (TOOL, "/metadata/instance/network", True),
        (STRANGER, "/metadata/instance/network", False),
        (Subject(user=33, executable="/usr/bin/other"), "/metadata/instance/network", False),
        (STRANGER, "/metadata/instance", False),
        (STRANGER, "/metadata/instance/compute", True),
        (STRANGER, "/metadata/scheduledevents", True),
        (APP, f"{TOKEN}&resource=https://vault.azure.net&client_id=ab", True),
        (TOOL, f"{TOKEN}&resource=https://vault.azure.net&client_id=ab", False),
        (APP, f"{TOKEN}&resource=https://vault.azure.net&CLIENT_ID=ab", False),
        (STRANGER, f"{TOKEN}&resource=https://vault.azure.net", True),
        (STRANGER, f"{TOKEN}&resource=https://vault.azure.net&Client_id=ab", False),
        (STRANGER, "/metadata/identity/info", True),
    ],
)
def test_profile_leaves_assigned_privileges_to_their_identities(subject: Subject, path: str, expected: bool) -> None:
    assert allowed(rules(ITEM), subject, path) is expected


def test_profile_without_rules_has_its_default() -> None:
    assert rules({"defaultAccess": "deny", "mode": "enforce", "id": ""}) == Rules(strict_names=False)
    assert rules({"roleAssignments": None, "mode": "Disabled"}).mode is Mode.DISABLED
    assert not allowed(rules({"rules": {}}), APP, "/metadata/instance")
    assert rules({"mode": "enforce", "rules": {"roles": None}}).rules == ()


def test_profile_names_without_a_letter_get_one() -> None:
    lists = json.loads(json.dumps(LISTS).replace("Net & Vault", "&&").replace("Net Vault", "default"))
    assert [rule.name for rule in rules({"rules": lists}).rules] == ["role", "default-2"]


def changed(key: str, index: int, **values: object) -> dict[str, Any]:
    lists = json.loads(json.dumps(LISTS))
    item = {**lists[key][index], **values}
    lists[key][index] = {name: value for name, value in item.items() if value != "leave out"}
    return {"rules": lists}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"rules": LISTS, "defaultAccess": "maybe"}, "defaultAccess is"),
        ({"rules": LISTS, "mode": "maybe"}, "mode is"),
        ({"rules": LISTS, "default": "deny"}, '"default" is not a key'),
        ({"rules": {"privilege": []}}, '"privilege" is not a key'),
        ({"rules": {"privileges": 1}}, "privileges must be a list"),
        ({"rules": {"privileges": [1]}}, "an item of privileges must be an object with a name"),
        (changed("privileges", 0, name="leave out"), "an item of privileges must be an object with a name"),
        (changed("privileges", 0, name=""), "name must be a text"),
        (changed("privileges", 1, name="network"), 'the name "network" occurs twice'),
        (changed("privileges", 0, path="leave out"), "a privilege must have a path"),
        (changed("privileges", 0, path="/machine"), 'path "/machine" is not a path under /metadata'),
        (changed("privileges", 0, queryParameters=[]), "queryParameters must be an object"),
        (changed("privileges", 0, queryParameters={"a": 1}), "a must be a text"),
        (changed("privileges", 0, queryParameters={"client_id": "a", "object_id": "b"}), "queryParameters name two"),
        (changed("privileges", 0, queryParameters={"resource": "a", "Resource": "b"}), "queryParameters name two"),
        (changed("roles", 0, privileges="leave out"), "a role must have privileges"),
        (changed("roles", 0, privileges=["gone"]), 'there is no privilege with the name "gone"'),
        (changed("identities", 1, groupName="leave out"), "an identity must have"),
        (changed("identities", 1, user="a"), '"user" is not a key'),
        (changed("roleAssignments", 0, role="leave out"), "a role assignment must have"),
        (changed("roleAssignments", 0, role="gone"), 'there is no role with the name "gone"'),
        (changed("roleAssignments", 0, identities=["gone"]), 'there is no identity with the name "gone"'),
    ],
)
def test_profile_states_line_and_reason_of_a_mistake(document: object, message: str) -> None:
    with pytest.raises(AccessFileError) as caught:
        rules(document)
    line, _, reason = str(caught.value).partition(": ")
    assert reason.startswith(message)
    assert int(line.removeprefix("line ")) >= 1
