"""Read an access file: the project's own form, or a profile of Azure's (`profile`).

The own form, in TOML; JSON has the same keys:

    default = "deny"
    reserved = ["/metadata/identity"]

    [[rule]]
    name = "web"
    user = ["www-data", 1001]
    allow = ["/metadata/instance/compute"]
    deny = ["/metadata/instance/compute/userData"]

    [[rule.token]]
    identity = ["client_id=4f1c...", "system-assigned"]
    resource = ["https://vault.azure.net"]
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from imdsproxy.access import profile
from imdsproxy.access.document import Node, read_document
from imdsproxy.access.paths import read_path
from imdsproxy.access.query import IDENTITY_PARAMETERS, SYSTEM_ASSIGNED, TOKEN, comparable
from imdsproxy.access.rules import OWN_NAMES, Grant, Mode, Rule, Rules, identity
from imdsproxy.access.subject import Network, Who, program

_TOP = frozenset({"default", "mode", "reserved", "rule"})
_WHO = frozenset({"anyone", "user", "unix_user", "group", "executable", "address", "namespace", "service_account"})
_RULE = _WHO | {"name", "allow", "deny", "token"}
_TOKEN = frozenset({"identity", "resource"})
_KINDS = frozenset(IDENTITY_PARAMETERS.values())
_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_MOST_ID = 2**32 - 2

Read = TypeVar("Read")


def read_rules(text: str, name: str) -> Rules:
    """Return the rules of an access file.

    Args:
        text: The content of the file.
        name: The name of the file, whose ending can decide between TOML and JSON.

    Raises:
        AccessFileError: It is not sound; the text names the line and the reason.
    """
    top = read_document(text, name)
    if profile.is_profile(top):
        return profile.read_profile(top)
    keys = top.table(_TOP)
    if "default" not in keys:
        raise top.error('default is missing; write default = "deny" or default = "allow"')
    allows = keys["default"].word(frozenset({"allow", "deny"})) == "allow"
    if "reserved" in keys and not allows:
        raise keys["reserved"].error('reserved has no effect with default = "deny", which reserves every path')
    rules: dict[str, Rule] = {}
    for node in keys["rule"].tables() if "rule" in keys else ():
        rule = _rule(node)
        if rule.name in rules:
            raise node.error(f'the name "{rule.name}" is given to two rules')
        rules[rule.name] = rule
    return Rules(
        tuple(rules.values()),
        allows,
        Mode(keys["mode"].word(frozenset({"enforce", "audit"}))) if "mode" in keys else Mode.ENFORCE,
        tuple(Grant(path) for path in _each(keys, "reserved", read_path)),
    )


def _rule(node: Node) -> Rule:
    keys = node.table(_RULE)
    if "name" not in keys:
        raise node.error("name is missing; each rule has one, which a refusal and the log state")
    name = keys["name"].text()
    if _RULE_NAME.fullmatch(name) is None or name in OWN_NAMES:
        raise keys["name"].error(
            f'"{name[:80]}" is not a name for a rule; use up to 64 letters, digits, ".", "_" and "-", '
            f"and none of {', '.join(sorted(OWN_NAMES))}"
        )
    grants = [Grant(path) for path in _each(keys, "allow", read_path)]
    if "token" in keys:
        grants += [_token(token) for token in keys["token"].tables()]
    denies = _each(keys, "deny", read_path)
    if not grants and not denies:
        raise node.error(f'the rule "{name}" says nothing; add allow, deny or a [[rule.token]]')
    return Rule(name, (_who(node, keys),), tuple(grants), tuple(denies))


def _who(node: Node, keys: Mapping[str, Node]) -> Who:
    given = sorted(_WHO.intersection(keys))
    if not given:
        raise node.error("the rule names no client; add one of " + ", ".join(sorted(_WHO - {"anyone"})) + ", or anyone")
    if "anyone" in keys and (keys["anyone"].value is not True or len(given) > 1):
        raise keys["anyone"].error("anyone can only be true, and then no other client is named")
    return Who(
        anyone="anyone" in keys,
        users=frozenset(_each(keys, "user", _user)),
        unix_users=frozenset(_each(keys, "unix_user", _user)),
        groups=frozenset(_each(keys, "group", _user)),
        executables=frozenset(_each(keys, "executable", _executable)),
        addresses=tuple(_each(keys, "address", _network)),
        namespaces=frozenset(_each(keys, "namespace", _kubernetes_name)),
        service_accounts=frozenset(_each(keys, "service_account", _service_account)),
    )


def _each(keys: Mapping[str, Node], key: str, read: Callable[[Node], Read]) -> list[Read]:
    return [read(item) for item in keys[key].items()] if key in keys else []


def _user(node: Node) -> str | int:
    value = node.value
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= _MOST_ID:
            raise node.error(f"{node.name} {value} is not a number of a user or group")
        return value
    if not isinstance(value, str) or not value:
        raise node.error(f"{node.name} must be a name or a number")
    name = node.text()
    if name.isdigit():
        raise node.error(f'{node.name} "{name[:40]}" is a number in quotes; write it without them')
    return name


def _executable(node: Node) -> str:
    path = node.text()
    on_windows = _DRIVE.match(path) is not None
    parts = (path[2:].replace("\\", "/") if on_windows else path).split("/")
    if parts[0] or len(parts) == 1 or {"", ".", ".."}.intersection(parts[1:]):
        raise node.error(
            f'executable "{path[:80]}" must be an absolute path without empty segments, "." and "..", '
            "such as /usr/bin/app, or on Windows C:\\Apps\\app.exe"
        )
    return program(path)


def _network(node: Node) -> Network:
    text = node.text()
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise node.error(f'address "{text[:80]}" is not an address range such as 10.1.0.0/16 or 10.1.2.3') from None


def _kubernetes_name(node: Node) -> str:
    name = node.text()
    if _KUBERNETES_NAME.fullmatch(name) is None:
        raise node.error(f'{node.name} "{name[:80]}" is not a name of Kubernetes')
    return name


def _service_account(node: Node) -> tuple[str, str]:
    namespace, slash, name = node.text().partition("/")
    if not slash or not all(map(_KUBERNETES_NAME.fullmatch, (namespace, name))):
        raise node.error(f'service_account "{node.text()[:80]}" must be NAMESPACE/NAME')
    return namespace, name


def _token(node: Node) -> Grant:
    keys = node.table(_TOKEN)
    if not keys:
        raise node.error(f"a [[rule.token]] names identity or resource; allow /{'/'.join(TOKEN)} for every token")
    return Grant(
        TOKEN,
        below=False,
        identities=frozenset(_each(keys, "identity", _identity)),
        audiences=frozenset(_each(keys, "resource", lambda item: comparable(item.text()))),
    )


def _identity(node: Node) -> tuple[str, str]:
    text = node.text()
    if text == SYSTEM_ASSIGNED:
        return identity(SYSTEM_ASSIGNED)
    kind, _, value = text.partition("=")
    if kind not in _KINDS or not value.strip("/"):
        raise node.error(
            f'identity "{text[:80]}" must be {SYSTEM_ASSIGNED}, or an identity as clients name it: '
            "client_id=..., object_id=... or resource_id=/subscriptions/..."
        )
    return identity(kind, value)
