"""Reading a machine from a file: TOML, YAML, or the JSON of an instance document as IMDS sent it."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from imdsproxy.emulator.recorded.recording import from_mapping as from_recording
from imdsproxy.emulator.vm.fields import with_fields, with_set
from imdsproxy.emulator.vm.model import VirtualMachine, VmError
from imdsproxy.emulator.vm.presets import linux, preset

_OF_EVERY_VERSION = {"location", "name", "osType", "vmId", "vmSize"}
_MOST_BYTES = 4 * 1024 * 1024


def load(file: str | None = None, base: str | None = None, sets: tuple[str, ...] | list[str] = ()) -> VirtualMachine:
    """Return the machine that a command line describes.

    Args:
        file: The path of a file; None without one.
        base: The preset to begin with; None is that of the file, or `linux`.
        sets: Single fields, as `compute.zone=1`; each takes precedence over what comes before it.

    Raises:
        VmError: The file, the preset or a field cannot be used.
    """
    machine = read(file, base) if file is not None else preset(base or "linux")
    for text in sets:
        try:
            machine = with_set(machine, text)
        except VmError as error:
            raise VmError(f"--set {text}: {error}") from None
    return machine


def read(file: str, base: str | None = None) -> VirtualMachine:
    """Return the machine of a file; `base` is as in `load`. Raise VmError with the name of the file."""
    path = Path(file)
    try:
        given = _parse(path)
        if path.suffix.lower() == ".json" and is_captured(given):
            return _captured(given, base)
        return from_mapping(given, base)
    except VmError as error:
        raise VmError(f"{file}: {error}") from None


def from_mapping(given: Mapping[str, Any], base: str | None = None) -> VirtualMachine:
    """Return the machine of a description; `base` is as in `load`. Raise VmError if it cannot be used."""
    if "answers" in given:
        return _recorded(given, base)
    fields = dict(given)
    named = fields.pop("preset", "linux")
    if not isinstance(named, str):
        raise VmError(f"preset is the name of one, not {named!r}")
    return with_fields(preset(base or named), fields)


def _recorded(given: Mapping[str, Any], base: str | None) -> VirtualMachine:
    """Return the machine whose IMDS was recorded; its documents are those of the newest api-version."""
    if base is not None or "preset" in given:
        raise VmError("a recording is a whole machine; leave out the preset")
    try:
        recording = from_recording(given)
    except ValueError as error:
        raise VmError(str(error)) from None
    offered = recording.versions("instance")
    if not offered:
        raise VmError("the recording has no instance document; record the machine again")
    newest = recording.answers["instance", "", offered[-1]]
    instance = json.loads(newest.body)
    if not isinstance(instance, Mapping) or not isinstance(instance.get("compute", {}), Mapping):
        raise VmError("the recorded instance document is no object; record the machine again")
    balanced = recording.versions("loadbalancer")
    machine = replace(
        linux(),
        instance=instance,
        versions=offered,
        event_versions=recording.versions("scheduledevents") or None,
        load_balancer=json.loads(recording.answers["loadbalancer", "", balanced[-1]].body) if balanced else None,
    )
    for version in recording.versions("identity/info"):
        tenant = json.loads(recording.answers["identity/info", "", version].body).get("tenantId", "")
        machine = replace(machine, tenant_id=str(tenant))
    fields = {name: value for name, value in given.items() if name not in {"answers", "words"}}
    return replace(with_fields(machine, fields), recording=recording)


def is_captured(given: Mapping[str, Any]) -> bool:
    """Return whether this is an instance document that IMDS sent, or its compute part, and not a description."""
    compute = given.get("compute", given)
    if not isinstance(compute, Mapping) or not compute.keys() >= _OF_EVERY_VERSION:
        return False
    return compute is given or given.keys() <= {"compute", "network", "extended"}


def _captured(given: Mapping[str, Any], base: str | None) -> VirtualMachine:
    machine = preset(base) if base else linux()
    document = given if "compute" in given else {"compute": given}
    network = document.get("network", machine.instance["network"])
    if not isinstance(network, Mapping):
        raise VmError("network is not an object; take the whole answer of /metadata/instance")
    # What was captured is not changed: it may have fields that are newer than this program.
    instance = {"compute": dict(document["compute"]), "network": dict(network)}
    return replace(machine, instance=instance, load_balancer=None)


def _parse(path: Path) -> Mapping[str, Any]:
    text = _text_of(path)
    suffix = path.suffix.lower()
    if suffix == ".toml":
        document = _toml(text)
    elif suffix in {".yaml", ".yml"}:
        document = _yaml(text)
    elif suffix == ".json":
        document = _json(text)
    else:
        raise VmError(f"{suffix or 'no ending'} says no format; name the file .toml, .yaml or .json")
    if not isinstance(document, Mapping) or not all(isinstance(key, str) for key in document):
        raise VmError("the file does not hold named fields; begin with, say, preset and compute")
    return document


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise VmError(f"cannot be read: {error.strerror or error}; check the path and its permissions") from None
    if len(data) > _MOST_BYTES:
        raise VmError(f"has more than {_MOST_BYTES} bytes, which no description of a machine needs")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VmError(f"is not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise VmError(f"is not TOML: {error}; correct it there") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise VmError(f"is not JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise VmError("is not JSON that can be read: it is nested too deeply") from None


def _yaml(text: str) -> Any:
    try:
        yaml = importlib.import_module("yaml")  # optional, and nothing else of the package needs it
    except ImportError:
        raise VmError(
            "is YAML, which needs the package PyYAML; install it, or write the file as TOML or JSON"
        ) from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise VmError(f"is not YAML: {getattr(error, 'problem', None) or 'it cannot be read'}{place}") from None
