"""One virtual machine as a frozen value: its documents, its identities, its cloud and what its region offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from imdsproxy.emulator.documents import INSTANCE_VERSIONS, INTRODUCED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imdsproxy.emulator.recorded.recording import Recording

Role = Literal["system", "user"]


class VmError(ValueError):
    """A description of a machine that cannot be used; the text is one line with the field and the remedy."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One managed identity. The system-assigned one has an empty `resource_id`; an empty tenant is the machine's."""

    client_id: str
    object_id: str
    resource_id: str = ""
    name: str = ""
    tenant_id: str = ""

    @property
    def role(self) -> Role:
        """Whether the identity belongs to this machine alone (`system`), or is assigned to it (`user`)."""
        return "user" if self.resource_id else "system"


@dataclass(frozen=True, slots=True)
class Cloud:
    """One of Azure's clouds.

    Attributes:
        name: How `--vm` and the presets name it.
        environment: Its name in `compute.azEnvironment`.
        attested_domain: The domain that the certificates of attested documents are for.

    Source: Microsoft's IMDS page of December 2020.
    """

    name: str
    environment: str
    attested_domain: str


CLOUDS = {
    cloud.name: cloud
    for cloud in (
        Cloud("public", "AzurePublicCloud", "metadata.azure.com"),
        Cloud("us-gov", "AzureUSGovernmentCloud", "metadata.azure.us"),
        Cloud("china", "AzureChinaCloud", "metadata.azure.cn"),
        Cloud("germany", "AzureGermanCloud", "metadata.microsoftazure.de"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """What the emulator is to say about one machine. Its documents are shared: copy one before you change it.

    Attributes:
        instance: The newest instance document, with `compute` and `network`.
        identities: The managed identities, the system-assigned one first.
        tenant_id: The tenant of the machine and of every identity that names none.
        token_life: The lifetime of an access token, in seconds.
        versions: The api-versions that its region offers, oldest first.
        event_versions: Those of scheduled events; None is all that the emulator knows.
        load_balancer: The load balancer document; None if the machine is behind none.
        introduced: The first api-version of fields, where it is not that of the documentation.
        classic: Whether the machine was made by the classic deployment model: IMDS then knows its network only, and
            signs no more than its `vmId`.
        recording: What a real IMDS answered, which is played back; None for a machine that was described.
    """

    instance: Mapping[str, Any]
    identities: tuple[Identity, ...]
    tenant_id: str
    token_life: float = 86_400.0
    versions: tuple[str, ...] = INSTANCE_VERSIONS
    event_versions: tuple[str, ...] | None = None
    load_balancer: Mapping[str, Any] | None = None
    introduced: Mapping[str, str] = field(default_factory=dict)
    classic: bool = False
    recording: Recording | None = None

    @property
    def compute(self) -> Mapping[str, Any]:
        """The compute part of the instance document; empty if a captured document has none."""
        compute: Mapping[str, Any] = self.instance.get("compute", {})
        return compute

    @property
    def cloud(self) -> Cloud:
        """The cloud that `compute.azEnvironment` names in any case; the public one if it names none that is known."""
        environment = str(self.compute.get("azEnvironment", "")).lower()
        return next((one for one in CLOUDS.values() if one.environment.lower() == environment), CLOUDS["public"])

    @property
    def name(self) -> str:
        """The name of the machine, which scheduled events use."""
        return str(self.compute.get("name", ""))

    @property
    def user_data(self) -> str:
        """The user data, in base64 as IMDS shows it."""
        return str(self.compute.get("userData", ""))

    def tenant_of(self, identity: Identity) -> str:
        """Return the tenant of an identity."""
        return identity.tenant_id or self.tenant_id

    def first_version_of(self) -> dict[str, str]:
        """Return the first api-version of each field, by its dotted name without array indices."""
        return {**INTRODUCED, **self.introduced}
