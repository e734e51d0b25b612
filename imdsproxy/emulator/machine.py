"""What one emulated IMDS knows: a virtual machine, and what is served of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator import attested, samples
from imdsproxy.emulator.events import ScheduledEvents
from imdsproxy.emulator.identity import ManagedIdentity
from imdsproxy.emulator.vm.presets import linux

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imdsproxy.emulator.messages import Answer
    from imdsproxy.emulator.vm.model import VirtualMachine


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
