"""One emulated IMDS: the machine, its limits, its faults, and a record of the arrivals."""

from __future__ import annotations

import copy
import secrets
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator import answers, attested
from imdsproxy.emulator.answers import is_identity
from imdsproxy.emulator.az_tokens import AzTokens
from imdsproxy.emulator.events import DEFAULT_NAME, ScheduledEvents
from imdsproxy.emulator.faults import Fault, Faults
from imdsproxy.emulator.identity import ManagedIdentity
from imdsproxy.emulator.keys import Keys
from imdsproxy.emulator.limits import Limits
from imdsproxy.emulator.machine import Machine
from imdsproxy.emulator.messages import Answer, Request, failure
from imdsproxy.emulator.vm.presets import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imdsproxy.emulator.vm.model import Identity, VirtualMachine

SERVER = "IMDS/150.870.65.1854"
MOST_ARRIVALS = 100_000

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Arrival:
    """One request that reached IMDS; `at` is in monotonic seconds, `status` None if it was not answered."""

    at: float
    method: str
    target: bytes
    headers: Headers
    status: int | None = None

    @property
    def client(self) -> str:
        """The User-Agent, empty without one."""
        return b", ".join(value for name, value in self.headers if name == b"user-agent").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Visit:
    """An arrival while it is served, with what was decided when it arrived.

    `latency` is in seconds. `admitted` is False if a limit refused it.
    """

    arrival: Arrival
    identity: bool
    admitted: bool
    fault: Fault | None
    latency: float


class Emulator:
    """All of IMDS except the socket. `faults`, `events`, `instance` and `arrivals` may be used from any thread.

    Args:
        machine: The virtual machine; None is the preset `linux`.
        instance: The instance document; None is that of `machine`.
        identities: The managed identities of the machine; None is those of `machine`.
        token_life: The lifetime of an access token, in seconds; None is that of `machine`.
        load_balancer: Whether the machine is behind the load balancer that `machine` describes.
        keys: What signs tokens and attested documents; None is keys of this process.
        lender: The source of a developer's own tokens, which are then handed out instead; None is none.
        extra: Answers for further paths below `/metadata/`.
        rate: Requests a second, 0 for no limit.
        identity_rate: Identity requests a second, 0 for no limit.
        identity_concurrency: Identity requests at once, 0 for no limit.
        identity_shares_general: Whether identity requests also count against `rate`.
        enable_delay: The seconds that the first request for scheduled events takes.
        speed: How much faster than the clock the scheduled events pass.
        strict: Whether it refuses what `strictness` lists.
        latency: Seconds added to every answer.
        seed: The seed of the random choice by a fault's `share`.
        monotonic: The monotonic clock.
        wall: The wall clock, in seconds since 1970.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each property that can be set
        self,
        *,
        machine: VirtualMachine | None = None,
        instance: dict[str, Any] | None = None,
        identities: Sequence[Identity] | None = None,
        token_life: float | None = None,
        load_balancer: bool = True,
        keys: Keys | None = None,
        lender: AzTokens | None = None,
        extra: Mapping[str, Answer] | None = None,
        rate: int = 5,
        identity_rate: int = 20,
        identity_concurrency: int = 5,
        identity_shares_general: bool = False,
        enable_delay: float = 0.0,
        speed: float = 1.0,
        strict: bool = False,
        latency: float = 0.0,
        seed: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        vm = linux() if machine is None else machine
        vm = replace(
            vm,
            instance=vm.instance if instance is None else instance,
            identities=vm.identities if identities is None else tuple(identities),
            token_life=vm.token_life if token_life is None else token_life,
            load_balancer=vm.load_balancer if load_balancer else None,
        )
        self.keys = Keys() if keys is None else keys
        self.machine = Machine(
            vm=vm,
            instance=copy.deepcopy(dict(vm.instance)) if instance is None else instance,
            identity=ManagedIdentity(
                vm.identities,
                vm.token_life,
                vm.tenant_id,
                machine_id=str(vm.compute.get("resourceId", "")),
                keys=self.keys,
                lender=lender,
            ),
            signer=attested.Signer(self.keys),
            events=ScheduledEvents(enable_delay, wall, self._name, speed),
            load_balancer=vm.load_balancer,
            extra=extra or {},
            strict=strict,
        )
        self.limits = Limits(
            rate,
            identity_rate,
            identity_concurrency,
            identity_shares_general=identity_shares_general,
        )
        self.faults = Faults(monotonic, seed)
        self.latency = latency
        self._monotonic = monotonic
        self._wall = wall
        self._arrivals: deque[Arrival] = deque(maxlen=MOST_ARRIVALS)
        self._arrived = 0
        self._lock = threading.Lock()
        self.page_token = secrets.token_urlsafe()

    @property
    def instance(self) -> dict[str, Any]:
        """The instance document; its values can be changed, and it can be replaced."""
        return self.machine.instance

    @instance.setter
    def instance(self, instance: dict[str, Any]) -> None:
        self.machine.instance = instance

    @property
    def events(self) -> ScheduledEvents:
        """The scheduled events."""
        return self.machine.events

    @property
    def arrivals(self) -> list[Arrival]:
        """A copy of the record, oldest first: the last `MOST_ARRIVALS` arrivals."""
        with self._lock:
            return list(self._arrivals)

    def arrivals_since(self, index: int) -> list[Arrival]:
        """Return the arrivals from the given index on, counted from 0 since the last reset."""
        with self._lock:
            forgotten = self._arrived - len(self._arrivals)
            return list(self._arrivals)[max(0, index - forgotten) :]

    @property
    def arrived(self) -> int:
        """The number of arrivals since the last reset."""
        with self._lock:
            return self._arrived

    def now(self) -> float:
        """Return the time in which `Arrival.at` counts."""
        return self._monotonic()

    def _name(self) -> str:
        return str(self.machine.instance.get("compute", {}).get("name", DEFAULT_NAME))

    def reset(self) -> None:
        """Drop all arrivals, all faults and all scheduled events."""
        self.faults.clear()
        self.events.reset()
        with self._lock:
            self._arrivals.clear()
            self._arrived = 0

    def accept(self, request: Request, target: bytes, headers: Headers) -> Visit:
        """Record an arrival, and decide on it: the limits first, then the faults.

        Call `leave` when the visit ends.
        """
        now = self._monotonic()
        arrival = Arrival(now, request.method, target, headers)
        with self._lock:
            self._arrivals.append(arrival)
            self._arrived += 1
        identity = is_identity(request.segments)
        if not self.limits.admit(now, identity=identity):
            return Visit(arrival, identity, admitted=False, fault=None, latency=0.0)
        path = tuple(segment.lower() for segment in request.segments)
        fault, latency = self.faults.apply(path, now)
        return Visit(arrival, identity, admitted=True, fault=fault, latency=self.latency + latency)

    def answer(self, visit: Visit, request: Request) -> Answer:
        """Return the answer to a visit, once its whole request has been read."""
        if not visit.admitted:
            return failure(429, visit.identity)
        if visit.fault is not None and visit.fault.status is not None:
            return visit.fault.answer(visit.identity)
        return answers.answer(self.machine, request, self._wall())

    def headers_of(self, answer: Answer) -> list[tuple[bytes, bytes]]:
        """Return all header fields of an answer."""
        pairs = [
            ("content-length", str(len(answer.body))),
            ("server", SERVER),
            ("x-ms-request-id", str(uuid.uuid4())),
            ("date", formatdate(self._wall(), usegmt=True)),
            *answer.headers,
        ]
        if answer.content_type is not None:
            pairs.insert(1, ("content-type", answer.content_type))
        return [(name.encode(), value.encode("latin-1", "replace")) for name, value in pairs]

    def leave(self, visit: Visit) -> None:
        """End a visit, so that the limits count it no longer."""
        if visit.admitted:
            self.limits.leave(identity=visit.identity)
