"""What an object shows of itself: `repr` ends up in logs, in tracebacks' messages and in asyncio's warnings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import imdsproxy
from imdsproxy.cache.freshness import make_entry
from imdsproxy.cache.rendered_hit import write
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Request, Response, Target
from imdsproxy.protocol.target import read_target

pytestmark = pytest.mark.any_python

SHOWN = {
    "budget.shared_record.Header.boot": "the machine's boot id, which every user may read",
    "cache.handover.Situation.boot": "the same",
    "cache.handover.KeptEntry.headers": "fields of an answer that is no credential",
    "emulator.emulator.Arrival.target": "what a test has sent to the emulator",
    "emulator.emulator.Arrival.headers": "the same",
    "emulator.faults.Fault.body": "a text of the person who runs the emulator",
    "ops.status_page.Page.live": "the page of `/-/status`, which holds no token",
    "ops.status_page.Page.once": "the same",
    "peers.sock_diag.End.address": "an IP address",
    "protocol.messages.Target.raw": "path and query, which have no token in them",
    "protocol.messages.Response.headers": "IMDS's fields, which are no credential",
    "protocol.messages.Refusal.headers": "the proxy's own fields",
}
"""Fields that could hold the bytes of an answer by their type or name, and why showing them gives nothing away."""
NAMES = ("body", "content", "access_token", "password", "private_key", "secret")
JWT = b"eyJ0eXAi.eyJhdWQi.c2lnbmF0dXJl"


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(imdsproxy.__path__, "imdsproxy."):
        if not found.name.endswith("__main__") and ("windows" in found.name) <= (sys.platform == "win32"):
            yield importlib.import_module(found.name)


def parts_of(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in typing.get_args(hint):
        if not isinstance(argument, list):  # of a Callable
            yield from parts_of(argument)


def fields_shown(kind: type) -> set[str]:
    """Return the names of the fields in a class's generated `repr`; those of a written one are not known."""
    if dataclasses.is_dataclass(kind):
        return (
            {each.name for each in dataclasses.fields(kind) if each.repr}
            if hasattr(kind.__repr__, "__wrapped__")
            else set()
        )
    return set(kind._fields) if kind.__repr__.__module__ == "collections" else set()  # type: ignore[attr-defined]


def hints_of(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # of an import for types only
        return dict(inspect.get_annotations(kind))


def test_no_generated_repr_shows_bytes_or_a_body() -> None:
    shown = set()
    for module in modules():
        for kind in vars(module).values():
            if not inspect.isclass(kind) or kind.__module__ != module.__name__:
                continue
            if not dataclasses.is_dataclass(kind) and not hasattr(kind, "_fields"):
                continue
            hints = hints_of(kind)
            for name in fields_shown(kind):
                hint = hints[name]
                if name in NAMES or bytes in set(parts_of(hint)) or (isinstance(hint, str) and "bytes" in hint):
                    shown.add(f"{module.__name__.removeprefix('imdsproxy.')}.{kind.__qualname__}.{name}")
    assert shown == SHOWN.keys()


def test_written_repr_shows_no_token() -> None:
    target = read_target(b"/metadata/instance")
    assert isinstance(target, Target)
    request = Request("POST", target, headers=((b"authorization", JWT),), body=JWT)
    assert repr(request) == "Request(POST /metadata/instance)"
    entry = make_entry(Response(200, (), JWT), Lifetimes(60, 60, 3600, 5), 0.0, 0.0)
    assert entry is not None
    assert JWT.decode() not in repr(write(entry, "token", 1.0))
