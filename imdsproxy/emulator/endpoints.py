"""What each endpoint of IMDS answers to a request that keeps the rules common to all (`answers`).

The wordings are those of IMDS, as documented or captured. Not verified against IMDS: the bodies for a leaf without
format=text and for a malformed event POST.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator import attested, documents
from imdsproxy.emulator.errors import LendError
from imdsproxy.emulator.events import EVENT_VERSIONS
from imdsproxy.emulator.messages import TEXT_TYPE, Answer, Request, failure, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from imdsproxy.emulator.machine import Machine
    from imdsproxy.emulator.vm.model import VirtualMachine

_NO_LOAD_BALANCER = (
    "No load balancer metadata is found. "
    "Please check if your VM is using any non-basic SKU load balancer and retry later."
)


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has passed the common rules, its parameters, and its path below the endpoint."""

    request: Request
    parameters: dict[str, str]
    version: str
    route: tuple[str, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint: its answer, its versions, which may be none, and its methods."""

    answer: Callable[[Machine, Call], Answer]
    versions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("GET",)

    def offered(self, vm: VirtualMachine) -> tuple[str, ...]:
        """Return the versions that the region of a machine offers, oldest first."""
        if self.versions is EVENT_VERSIONS:
            return self.versions if vm.event_versions is None else vm.event_versions
        return tuple(version for version in vm.versions if version >= self.versions[0])


def find(machine: Machine, segments: tuple[str, ...]) -> tuple[Endpoint | None, tuple[str, ...]]:
    """Return the endpoint of a path, None if there is none, and what follows it in the path."""
    if not segments or segments[0].lower() != "metadata":
        return None, ()
    name = "/".join(segments[1:]).lower()
    if name in machine.extra:
        extra = machine.extra[name]
        return Endpoint(lambda _machine, _call: extra, methods=("GET", "POST")), ()
    if name == "instance" or name.startswith("instance/"):
        return _INSTANCE, segments[2:]
    return _ENDPOINTS.get(name), ()


def _instance(machine: Machine, call: Call) -> Answer:
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


def _token(machine: Machine, call: Call) -> Answer:
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


def _attested(machine: Machine, call: Call) -> Answer:
    nonce = call.parameters.get("nonce")
    compute = machine.instance.get("compute", {})
    signed = {"vmId": compute.get("vmId", "")} if machine.vm.classic else compute
    document = attested.payload(signed, nonce, call.version, call.now)
    signature = machine.signer.sign(document, machine.vm.cloud.attested_domain)
    return json_answer({"encoding": "pkcs7", "signature": signature})


def _events(machine: Machine, call: Call) -> Answer:
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


def _load_balancer(machine: Machine, _call: Call) -> Answer:
    if machine.load_balancer is None:
        return failure(404, message=_NO_LOAD_BALANCER)
    return json_answer(machine.load_balancer)


def _versions(machine: Machine, _call: Call) -> Answer:
    return json_answer({"apiVersions": machine.vm.versions})


def _info(machine: Machine, _call: Call) -> Answer:
    return json_answer({"tenantId": machine.identity.tenant_id})


_INSTANCE = Endpoint(_instance, documents.INSTANCE_VERSIONS)
_ENDPOINTS = {
    "versions": Endpoint(_versions),
    "attested/document": Endpoint(_attested, documents.ATTESTED_VERSIONS),
    "identity/oauth2/token": Endpoint(_token, documents.IDENTITY_VERSIONS),
    "identity/info": Endpoint(_info, documents.IDENTITY_VERSIONS),
    "loadbalancer": Endpoint(_load_balancer, documents.LOAD_BALANCER_VERSIONS),
    "scheduledevents": Endpoint(_events, EVENT_VERSIONS, ("GET", "POST")),
}
