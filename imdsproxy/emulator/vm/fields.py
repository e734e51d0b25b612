"""Every field of a machine that a file or `--set` can change, and how its value is read."""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from imdsproxy.emulator.documents import versions_since
from imdsproxy.emulator.samples import sample_load_balancer
from imdsproxy.emulator.vm.documents import as_text, leaves, merged, nested, part_at, schema, unknown, with_tags
from imdsproxy.emulator.vm.model import CLOUDS, Identity, VirtualMachine, VmError

_VERSION = re.compile(r"\d{4}-\d\d-\d\d")
_NAMES = uuid.UUID("e0000000-0000-4000-8000-000000000000")
_IDENTITY_KEYS = ("name", "role", "client-id", "object-id", "resource-id", "tenant-id")
_ROLES = ("system", "user")
_RECORDED = {"compute", "network", "cloud", "user-data", "versions", "newest-version", "load-balancer", "classic"}


def with_fields(machine: VirtualMachine, given: Mapping[str, Any]) -> VirtualMachine:
    """Return the machine with new values of its fields, `compute` and `network` merged into its documents.

    Raises:
        VmError: A field is unknown, or its value cannot be used.
    """
    for name, value in given.items():
        if machine.recording is not None and name in _RECORDED:
            raise VmError(f"{name} cannot be changed: the machine is a recording, which is played back as it is")
        if name in ("compute", "network"):
            machine = _with_part(machine, name, value)
        elif name in _FIELDS:
            machine = _FIELDS[name](machine, value)
        else:
            raise unknown(name, ("compute", "network", *_FIELDS), _parts())
    return machine


def with_set(machine: VirtualMachine, text: str) -> VirtualMachine:
    """Return the machine with one field changed by the text of a `--set`, as `compute.zone=1`.

    The value is text, or JSON where the field is an object, a list, a number or a switch.

    Raises:
        VmError: The field is unknown, or its value cannot be used.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals:
        raise VmError(f"{text!r} has no value; write --set NAME=VALUE, as --set compute.location=westus")
    root, *rest = path.split(".")
    if root not in ("compute", "network"):
        return with_fields(machine, {path: _read(value)})
    known = schema()[root]
    wanted = part_at(known, rest) or part_at(machine.instance.get(root), rest)
    readable = isinstance(wanted, dict | list) or (path == "compute.tags" and value.lstrip().startswith("{"))
    new = _read(value) if readable else value
    return with_fields(machine, {root: nested(rest, new, machine.instance.get(root), known, root)})


def _parts() -> list[str]:
    return [name for root, part in schema().items() for name in leaves(part, root)]


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _with_part(machine: VirtualMachine, part: str, value: Any) -> VirtualMachine:
    current = machine.instance.get(part, {})
    if part == "compute" and isinstance(value, Mapping):
        value, current = with_tags(current, value)
    return replace(machine, instance={**machine.instance, part: merged(current, value, schema()[part], part)})


def _with_versions(machine: VirtualMachine, value: Any) -> VirtualMachine:
    return replace(machine, versions=_versions("versions", value))


def _with_newest(machine: VirtualMachine, value: Any) -> VirtualMachine:
    newest = _versions("newest-version", [value])[0]
    offered = tuple(version for version in versions_since("") if version <= newest)
    if not offered:
        raise VmError(f"newest-version {newest} is before the first api-version, {versions_since('')[0]}")
    return replace(machine, versions=offered)


def _with_event_versions(machine: VirtualMachine, value: Any) -> VirtualMachine:
    return replace(machine, event_versions=_versions("event-versions", value))


def _versions(name: str, value: Any) -> tuple[str, ...]:
    wanted = value.split(",") if isinstance(value, str) else value
    if not isinstance(wanted, list) or not wanted:
        raise VmError(f"{name} is a list of api-versions, as 2021-02-01,2021-03-01, not {value!r}")
    texts = [str(version).strip() for version in wanted]  # TOML and YAML read 2021-02-01 as a date
    for version in texts:
        if not _VERSION.fullmatch(version):
            raise VmError(f"{name} has {version!r}, which is not an api-version; write it as 2021-02-01")
    return tuple(sorted(set(texts)))


def _with_token_life(machine: VirtualMachine, value: Any) -> VirtualMachine:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if not usable:
        raise VmError(f"token-life is the lifetime of an access token in seconds, 0 or more, not {value!r}")
    return replace(machine, token_life=float(value))


def _with_cloud(machine: VirtualMachine, value: Any) -> VirtualMachine:
    if value not in CLOUDS:
        raise VmError(f"there is no cloud {value!r}; choose one of {', '.join(CLOUDS)}")
    return _with_part(machine, "compute", {"azEnvironment": CLOUDS[value].environment})


def _with_user_data(machine: VirtualMachine, value: Any) -> VirtualMachine:
    encoded = base64.b64encode(as_text(value).encode()).decode()
    return _with_part(machine, "compute", {"userData": encoded})


def _with_classic(machine: VirtualMachine, value: Any) -> VirtualMachine:
    if not isinstance(value, bool):
        raise VmError(f"classic is true or false, not {value!r}")
    return replace(machine, classic=value)


def _with_load_balancer(machine: VirtualMachine, value: Any) -> VirtualMachine:
    if isinstance(value, bool):
        return replace(machine, load_balancer=sample_load_balancer() if value else None)
    if not isinstance(value, Mapping):
        raise VmError(f"load-balancer is true, false or its document, not {value!r}")
    known = sample_load_balancer()["loadbalancer"]
    inner = value.get("loadbalancer", value)
    if not isinstance(inner, Mapping):
        raise VmError(f"load-balancer.loadbalancer is an object, not {inner!r}")
    for key in inner:
        if key not in known:
            raise unknown(f"load-balancer.{key}", [f"load-balancer.{name}" for name in known])
    return replace(machine, load_balancer={"loadbalancer": {**{key: [] for key in known}, **inner}})


def _with_tenant(machine: VirtualMachine, value: Any) -> VirtualMachine:
    return replace(machine, tenant_id=_text("tenant-id", value))


def _with_identities(machine: VirtualMachine, value: Any) -> VirtualMachine:
    if isinstance(value, str):
        value = [] if value.strip() in ("", "none") else [each.strip() for each in value.split(",")]
    if not isinstance(value, list):
        raise VmError(f"identities is a list, as system,first or none, not {value!r}")
    identities = [_identity(machine, each, index) for index, each in enumerate(value)]
    if sum(identity.role == "system" for identity in identities) > 1:
        raise VmError("identities has more than one with the role system; a machine has one at most")
    for field in ("client_id", "object_id", "resource_id"):
        values = [getattr(each, field).lower() for each in identities if getattr(each, field)]
        if len(values) != len(set(values)):
            raise VmError(f"two identities have the same {field.replace('_', '-')}; give each its own")
    return replace(machine, identities=tuple(sorted(identities, key=lambda each: each.role)))


def _identity(machine: VirtualMachine, entry: Any, index: int) -> Identity:
    where = f"identities.{index}"
    if isinstance(entry, str):
        entry = {"role": "system"} if entry == "system" else {"name": entry}
    if not isinstance(entry, Mapping):
        raise VmError(f"{where} is a name or an object with {', '.join(_IDENTITY_KEYS)}, not {entry!r}")
    for key in entry:
        if key not in _IDENTITY_KEYS:
            raise unknown(f"{where}.{key}", [f"{where}.{each}" for each in _IDENTITY_KEYS])
    values = {key: _text(f"{where}.{key}", value) for key, value in entry.items()}
    role = values.get("role", "user")
    if role not in _ROLES:
        raise VmError(f"{where}.role is system or user, not {role!r}")
    if role == "system" and values.get("resource-id"):
        raise VmError(f"{where} has the role system, and so no resource-id; leave it out, or set the role to user")
    name = values.get("name") or (machine.name if role == "system" else f"identity{index}")
    return Identity(
        values.get("client-id") or str(uuid.uuid5(_NAMES, f"client/{role}/{name}")),
        values.get("object-id") or str(uuid.uuid5(_NAMES, f"object/{role}/{name}")),
        "" if role == "system" else values.get("resource-id") or _resource_id(machine, name),
        name,
        values.get("tenant-id", ""),
    )


def _resource_id(machine: VirtualMachine, name: str) -> str:
    group = machine.compute.get("resourceGroupName", "")
    prefix = f"/subscriptions/{machine.compute.get('subscriptionId', '')}/resourceGroups/{group}"
    return f"{prefix}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise VmError(f"{name} is text, not {value!r}")
    return value


_FIELDS: dict[str, Callable[[VirtualMachine, Any], VirtualMachine]] = {
    "cloud": _with_cloud,
    "classic": _with_classic,
    "user-data": _with_user_data,
    "identities": _with_identities,
    "tenant-id": _with_tenant,
    "token-life": _with_token_life,
    "versions": _with_versions,
    "newest-version": _with_newest,
    "event-versions": _with_event_versions,
    "load-balancer": _with_load_balancer,
}
