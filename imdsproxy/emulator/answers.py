"""The rules of IMDS as one function from a request to an answer, without a clock and without a socket.

The wordings are those of IMDS, as documented or captured. Not verified against IMDS:

- the bodies for X-Forwarded-For, for repeated parameters, for a leaf without format=text, for 405 and for a malformed
  event POST;
- the order of the checks, beyond what clients rely on;
- that paths and query names are compared without case.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator import attested, documents, samples
from imdsproxy.emulator.errors import LendError
from imdsproxy.emulator.events import EVENT_VERSIONS, ScheduledEvents
from imdsproxy.emulator.identity import ManagedIdentity
from imdsproxy.emulator.messages import TEXT_TYPE, Answer, Request, failure, json_answer
from imdsproxy.emulator.playback import in_words, played
from imdsproxy.emulator.strictness import refused_path, refused_query
from imdsproxy.emulator.vm.presets import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
_NO_LOAD_BALANCER = (
    "No load balancer metadata is found. "
    "Please check if your VM is using any non-basic SKU load balancer and retry later."
)
_NO_HEADER = "Required metadata header not specified"
_NEWEST_LISTED = 3
_DATED = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(slots=True)
class Machine:
    """What IMDS knows about one virtual machine. Any part may be replaced while it is served.

    `vm` is what was described; the other parts begin as it says. `extra` has answers for further paths that are 404 by
    default, such as `identity/getplatformmetadata`. `strict` refuses what `strictness` lists.
    """

    vm: VirtualMachine = field(default_factory=linux)
    instance: dict[str, Any] = field(default_factory=samples.sample_instance)
    identity: ManagedIdentity = field(default_factory=ManagedIdentity)
    events: ScheduledEvents = field(default_factory=ScheduledEvents)
    signer: attested.Signer = field(default_factory=attested.Signer)
    load_balancer: Mapping[str, Any] | None = field(default_factory=samples.sample_load_balancer)
    extra: Mapping[str, Answer] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that has passed the common rules, its parameters, and its path below the endpoint."""

    request: Request
    parameters: dict[str, str]
    version: str
    route: tuple[str, ...]
    now: float


@dataclass(frozen=True, slots=True)
class _Endpoint:
    answer: Callable[[Machine, _Call], Answer]
    versions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("GET",)

    def offered(self, vm: VirtualMachine) -> tuple[str, ...]:
        """Return the versions that the region of a machine offers, oldest first."""
        if self.versions is EVENT_VERSIONS:
            return self.versions if vm.event_versions is None else vm.event_versions
        return tuple(version for version in vm.versions if version >= self.versions[0])


def is_identity(segments: tuple[str, ...]) -> bool:
    """Return whether a path belongs to managed identity, which has limits and wordings of its own."""
    return tuple(segment.lower() for segment in segments[:2]) == ("metadata", "identity")


def answer(machine: Machine, request: Request, now: float) -> Answer:
    """Return the answer to one request; `now` is in seconds since 1970."""
    identity = is_identity(request.segments)
    if (refused := _refused_at_once(machine, request, identity)) is not None:
        return refused
    endpoint, route = _find(machine, request.segments)
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


def _find(machine: Machine, segments: tuple[str, ...]) -> tuple[_Endpoint | None, tuple[str, ...]]:
    if not segments or segments[0].lower() != "metadata":
        return None, ()
    name = "/".join(segments[1:]).lower()
    if name in machine.extra:
        extra = machine.extra[name]
        return _Endpoint(lambda _machine, _call: extra, methods=("GET", "POST")), ()
    if name == "instance" or name.startswith("instance/"):
        return _INSTANCE, segments[2:]
    return _ENDPOINTS.get(name), ()


def _call(machine: Machine, endpoint: _Endpoint, route: tuple[str, ...], request: Request, now: float) -> Answer:
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
    return endpoint.answer(machine, _Call(request, parameters, version, route, now))


def _special(machine: Machine, request: Request, parameters: Mapping[str, str]) -> Answer | None:
    """Return the answer that a strict or a recorded IMDS gives before all rules of its endpoint, None without one."""
    refused = refused_query(request, parameters, machine.vm.tenant_id) if machine.strict else None
    return refused or played(machine.vm, request, parameters, has_events=machine.events.incarnation > 1)


def _wrong_version(vm: VirtualMachine, version: str, offered: tuple[str, ...]) -> Answer:
    """Return the error about a version that is missing or that this machine's region does not offer."""
    in_2020 = not version and vm.versions[-1] <= _LAST_OF_2020
    message = _NO_VERSION_IN_2020 if in_2020 else _NO_VERSION
    return json_answer({"error": message, "newest-versions": offered[: -_NEWEST_LISTED - 1 : -1]}, 400)


def _instance(machine: Machine, call: _Call) -> Answer:
    known = machine.instance
    if machine.vm.classic:
        known = {name: part for name, part in known.items() if name != "compute"}
    element = documents.at_version(known, call.version, machine.vm.first_version_of())
    extended = call.parameters.get("extended", "").lower() == "true"
    if extended and not call.route and call.version >= documents.EXTENDED_SINCE:
        element |= documents.extended_part()
    for segment in call.route:
        element = _child(element, segment)
        if element is None:
            return failure(404)
    form = call.parameters.get("format", "json").lower()
    if form == "json" and isinstance(element, dict | list):
        return json_answer(element)
    if form == "text":
        return Answer(200, _text(element).encode(), TEXT_TYPE)
    wanted = "format=text is required for a leaf" if form == "json" else "format must be json or text"
    return failure(400, message=f"Bad request. {wanted}")


def _child(element: Any, segment: str) -> Any:
    if isinstance(element, list):
        return next((child for at, child in enumerate(element) if str(at) == segment), None)
    if isinstance(element, dict):
        return next((child for name, child in element.items() if name.lower() == segment.lower()), None)
    return None


def _text(element: Any) -> str:
    """Return the value of a leaf, or one child a line, containers with `/` (older pages; not verified)."""
    if not isinstance(element, dict | list):
        return element if isinstance(element, str) else json.dumps(element)
    children = element.items() if isinstance(element, dict) else enumerate(element)
    return "\n".join(f"{name}/" if isinstance(child, dict | list) else f"{name}" for name, child in children)


def _token(machine: Machine, call: _Call) -> Answer:
    resource = call.parameters.get("resource", "")
    if not resource:
        return failure(400, identity=True, message="Required query variable 'resource' is missing")
    identity = machine.identity.choose(call.parameters)
    if isinstance(identity, str):
        return failure(400, identity=True, message=identity)
    bypass = call.parameters.get("bypass_cache", "").lower() == "true"
    try:
        return json_answer(machine.identity.token(identity, resource, call.now, bypass_cache=bypass))
    except LendError as error:
        return failure(error.status, identity=True, message=str(error))


def _attested(machine: Machine, call: _Call) -> Answer:
    nonce = call.parameters.get("nonce")
    compute = machine.instance.get("compute", {})
    signed = {"vmId": compute.get("vmId", "")} if machine.vm.classic else compute
    document = attested.payload(signed, nonce, call.version, call.now)
    signature = machine.signer.sign(document, machine.vm.cloud.attested_domain)
    return json_answer({"encoding": "pkcs7", "signature": signature})


def _events(machine: Machine, call: _Call) -> Answer:
    if call.request.method == "POST":
        event_ids = _acknowledged(call.request.body)
        if event_ids is None or not machine.events.start(event_ids, call.now):
            return failure(400)
        return Answer(200)
    delay = machine.events.enable(call.now)
    return replace(json_answer(machine.events.document(call.version, call.now + delay)), delay=delay)


def _acknowledged(body: bytes) -> list[str] | None:
    try:
        event_ids = [entry["EventId"] for entry in json.loads(body)["StartRequests"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return event_ids if all(isinstance(event_id, str) for event_id in event_ids) else None


def _load_balancer(machine: Machine, _call: _Call) -> Answer:
    if machine.load_balancer is None:
        return failure(404, message=_NO_LOAD_BALANCER)
    return json_answer(machine.load_balancer)


def _versions(machine: Machine, _call: _Call) -> Answer:
    return json_answer({"apiVersions": machine.vm.versions})


def _info(machine: Machine, _call: _Call) -> Answer:
    return json_answer({"tenantId": machine.identity.tenant_id})


_INSTANCE = _Endpoint(_instance, documents.INSTANCE_VERSIONS)
_ENDPOINTS = {
    "versions": _Endpoint(_versions),
    "attested/document": _Endpoint(_attested, documents.ATTESTED_VERSIONS),
    "identity/oauth2/token": _Endpoint(_token, documents.IDENTITY_VERSIONS),
    "identity/info": _Endpoint(_info, documents.IDENTITY_VERSIONS),
    "loadbalancer": _Endpoint(_load_balancer, documents.LOAD_BALANCER_VERSIONS),
    "scheduledevents": _Endpoint(_events, EVENT_VERSIONS, ("GET", "POST")),
}
