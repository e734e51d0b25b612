"""The rules of IMDS as one function from a request to an answer, without a clock and without a socket.

The rules common to all endpoints are here, those of each endpoint in `endpoints`.

The wordings are those of IMDS, as documented or captured. Not verified against IMDS:

- the bodies for X-Forwarded-For, for repeated parameters and for 405;
- the order of the checks, beyond what clients rely on;
- that paths and query names are compared without case.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from imdsproxy.emulator.endpoints import Call, Endpoint, find
from imdsproxy.emulator.events import EVENT_VERSIONS
from imdsproxy.emulator.machine import Machine
from imdsproxy.emulator.messages import Answer, Request, failure, json_answer
from imdsproxy.emulator.playback import in_words, played
from imdsproxy.emulator.strictness import refused_path, refused_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imdsproxy.emulator.vm.model import VirtualMachine

_NO_VERSION = (
    "Bad request. api-version is invalid or was not specified in the request. "
    "For more information refer to aka.ms/azureimds"
)
# As IMDS said it in 2020, for a request without a version. Not verified: what it said then of an unknown one.
_NO_VERSION_IN_2020 = (
    "Bad request. api-version was not specified in the request. For more information refer to aka.ms/azureimds"
)
_LAST_OF_2020 = "2020-10-01"
_NO_HEADER = "Required metadata header not specified"
_NEWEST_LISTED = 3
_DATED = re.compile(r"\d{4}-\d{2}-\d{2}")


def is_identity(segments: tuple[str, ...]) -> bool:
    """Return whether a path belongs to managed identity, which has limits and wordings of its own."""
    return tuple(segment.lower() for segment in segments[:2]) == ("metadata", "identity")


def answer(machine: Machine, request: Request, now: float) -> Answer:
    """Return the answer to one request; `now` is in seconds since 1970."""
    identity = is_identity(request.segments)
    if (refused := _refused_at_once(machine, request, identity)) is not None:
        return refused
    endpoint, route = find(machine, request.segments)
    # MSAL .NET probes without the header, and needs 404 if an identity endpoint does not exist.
    if identity and endpoint is None:
        return failure(404, identity)
    if ",".join(request.values("metadata")).strip().lower() != "true":
        if identity:
            return failure(400, identity, _NO_HEADER)
        plain = Answer(400, f'{{ "error": "Bad request: . {_NO_HEADER}" }}'.encode())
        return in_words(machine.vm, "no-header", plain)
    if endpoint is None:
        return failure(404)
    return _call(machine, endpoint, route, request, now)


def _refused_at_once(machine: Machine, request: Request, identity: bool) -> Answer | None:
    if request.values("x-forwarded-for"):
        return failure(400, identity, "Requests with an X-Forwarded-For header are refused")
    return refused_path(request.path, identity=identity) if machine.strict else None


def _call(machine: Machine, endpoint: Endpoint, route: tuple[str, ...], request: Request, now: float) -> Answer:
    identity = is_identity(request.segments)
    if request.method not in endpoint.methods:
        return replace(failure(405, identity), headers=(("allow", ", ".join(endpoint.methods)),))
    parameters = {name.lower(): value for name, value in request.query}
    if len(parameters) != len(request.query):
        return failure(400, identity, "Bad request. Query parameter names must not be repeated")
    version = parameters.get("api-version", "")
    special = _special(machine, request, parameters)
    if special is not None:
        return special
    if endpoint.versions:
        offered = endpoint.offered(machine.vm)
        if version not in offered:
            if endpoint.versions is EVENT_VERSIONS and _DATED.fullmatch(version):
                return failure(404)  # what public node agents expect of a region that does not know the version yet
            return _wrong_version(machine.vm, version, offered)
    return endpoint.answer(machine, Call(request, parameters, version, route, now))


def _special(machine: Machine, request: Request, parameters: Mapping[str, str]) -> Answer | None:
    """Return the answer that a strict or a recorded IMDS gives before all rules of its endpoint, None without one."""
    refused = refused_query(request, parameters, machine.vm.tenant_id) if machine.strict else None
    return refused or played(machine.vm, request, parameters, has_events=machine.events.incarnation > 1)


def _wrong_version(vm: VirtualMachine, version: str, offered: tuple[str, ...]) -> Answer:
    """Return the error about a version that is missing or that this machine's region does not offer."""
    in_2020 = not version and vm.versions[-1] <= _LAST_OF_2020
    message = _NO_VERSION_IN_2020 if in_2020 else _NO_VERSION
    return json_answer({"error": message, "newest-versions": offered[: -_NEWEST_LISTED - 1 : -1]}, 400)
