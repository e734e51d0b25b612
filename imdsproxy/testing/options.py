"""What a test can choose when an emulated IMDS starts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, TypedDict

from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.vm.fields import with_set
from imdsproxy.emulator.vm.loading import from_mapping, load
from imdsproxy.emulator.vm.model import VirtualMachine


class Options(TypedDict, total=False):
    """What a test can choose when an emulated IMDS starts; the rest is as at Azure."""

    vm: str | os.PathLike[str] | Mapping[str, Any] | VirtualMachine
    """The machine: the path of its description, as for `--vm`, or what such a file says; the default is `linux`."""
    preset: str
    """The machine to begin with, such as `windows`."""
    set: Mapping[str, Any]
    """Fields of the machine by name, as for `--set`: `{"compute.location": "westeurope", "token-life": 600}`."""
    rate: int
    """Requests a second, 0 for no limit."""
    identity_rate: int
    """Identity requests a second, 0 for no limit."""
    identity_concurrency: int
    """Identity requests at once, 0 for no limit."""
    enable_delay: float
    """The seconds that the first request for scheduled events takes."""
    strict: bool
    """Whether to refuse what IMDS does not document, so that no program relies on it."""
    speed: float
    """How much faster than the clock the scheduled events pass."""
    latency: float
    """Seconds added to every answer."""


_COUNTS = frozenset({"rate", "identity_rate", "identity_concurrency"})


def machine_of(options: Options) -> VirtualMachine:
    """Return the machine that the options `vm`, `preset` and `set` describe.

    Raises:
        ValueError: A file, a preset or a field cannot be used.
    """
    vm, base = options.get("vm"), options.get("preset")
    if isinstance(vm, VirtualMachine):
        machine = vm
    elif isinstance(vm, Mapping):
        machine = from_mapping(vm, base)
    else:
        machine = load(None if vm is None else os.fspath(vm), base)
    for field, value in options.get("set", {}).items():
        machine = with_set(machine, assignment(field, value))
    return machine


def emulator_of(options: Options) -> Emulator:
    """Return the emulator that the options describe.

    Raises:
        ValueError: An option or a field does not exist; the message names those that do.
    """
    given: dict[str, Any] = dict(options)
    if unknown := sorted(set(given) - set(Options.__annotations__)):
        known = ", ".join(sorted(Options.__annotations__))
        raise ValueError(f"the emulated IMDS has no option {', '.join(unknown)}; it has {known}")
    machine = machine_of(options)
    rest = {name: value for name, value in given.items() if name not in {"vm", "preset", "set"}}
    for name, value in rest.items():
        _check(name, value)
    return Emulator(machine=machine, **rest)


def _check(name: str, value: Any) -> None:
    """Raise ValueError for an option that has no meaning, with its name and its value."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if name == "strict":
        if not isinstance(value, bool):
            raise ValueError(f"strict is True or False, not {value!r}")
    elif name in _COUNTS:
        if not (number and isinstance(value, int)):
            raise ValueError(f"{name} is a whole number, 0 for no limit, not {value!r}")
    elif not number:
        raise ValueError(f"{name} is a number, 0 or more, not {value!r}")


def assignment(field: str, value: Any) -> str:
    """Return what `--set` would take."""
    return f"{field}={value if isinstance(value, str) else json.dumps(value)}"
