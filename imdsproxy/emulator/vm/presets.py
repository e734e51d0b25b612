"""The machines that the emulator knows by name. Each call makes a new one, which shares nothing with the others.

Sources: Microsoft's IMDS pages of December 2020 and of 2025. Not verified: values of `spot`, `confidential` and
`scale-set` beyond their documented names, because no complete document of such a machine is published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator.documents import INSTANCE_VERSIONS
from imdsproxy.emulator.samples import GROUP, sample_instance, sample_load_balancer
from imdsproxy.emulator.vm.model import CLOUDS, Identity, VirtualMachine, VmError
from imdsproxy.emulator.windows_sample import windows_instance

if TYPE_CHECKING:
    from collections.abc import Callable

_USER_ASSIGNED = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
SYSTEM_ASSIGNED = Identity(
    "e0000000-0000-4000-8000-00000000c110", "e0000000-0000-4000-8000-000000000b10", name="examplevmname"
)
USER_ASSIGNED = (
    Identity(
        "e0000000-0000-4000-8000-00000000c111",
        "e0000000-0000-4000-8000-000000000b11",
        f"{_USER_ASSIGNED}/first",
        "first",
    ),
    Identity(
        "e0000000-0000-4000-8000-00000000c112",
        "e0000000-0000-4000-8000-000000000b12",
        f"{_USER_ASSIGNED}/second",
        "second",
    ),
)
TENANT = "e0000000-0000-4000-8000-00000000a7e1"
# The newest api-version of the page of December 2020, and the field that its samples show a version before its table.
_NEWEST_OF_2020 = "2020-10-01"
_EARLY_IN_SAMPLES = {"compute.osProfile.disablePasswordAuthentication": "2020-09-01"}


def linux() -> VirtualMachine:
    """Return a machine with Ubuntu, a load balancer, and an identity of each kind."""
    return VirtualMachine(
        instance=sample_instance(),
        identities=(SYSTEM_ASSIGNED, *USER_ASSIGNED),
        tenant_id=TENANT,
        load_balancer=sample_load_balancer(),
    )


def windows() -> VirtualMachine:
    """Return the machine of the page of December 2020, with its values, its fields and its api-versions."""
    return replace(
        linux(),
        instance=windows_instance(),
        versions=tuple(version for version in INSTANCE_VERSIONS if version <= _NEWEST_OF_2020),
        introduced=_EARLY_IN_SAMPLES,
        load_balancer=None,
    )


def _scale_set() -> VirtualMachine:
    name, scale_set = "examplescaleset_0", "examplescaleset"
    prefix = f"{GROUP}/providers/Microsoft.Compute"
    return _linux_with(
        name=name,
        placementGroupId="f67c14ab-e92c-408c-ae2d-da15866ec79a",
        resourceId=f"{prefix}/virtualMachineScaleSets/{scale_set}/virtualMachines/0",
        virtualMachineScaleSet={"id": f"{prefix}/virtualMachineScaleSets/{scale_set}"},
        vmScaleSetName=scale_set,
    )


def _spot() -> VirtualMachine:
    return _linux_with(evictionPolicy="Deallocate", priority="Spot")


def _confidential() -> VirtualMachine:
    profile = {
        "encryptionAtHost": "false",
        "secureBootEnabled": "true",
        "securityType": "ConfidentialVM",
        "virtualTpmEnabled": "true",
    }
    return _linux_with(securityProfile=profile, vmSize="Standard_DC4as_v5")


def _us_gov() -> VirtualMachine:
    return _linux_with(azEnvironment=CLOUDS["us-gov"].environment, location="usgovvirginia")


def _china() -> VirtualMachine:
    return _linux_with(azEnvironment=CLOUDS["china"].environment, location="chinanorth3")


def _classic() -> VirtualMachine:
    return replace(linux(), classic=True, identities=(), load_balancer=None)


def _linux_with(**compute: Any) -> VirtualMachine:
    machine = linux()
    return replace(machine, instance={**machine.instance, "compute": {**machine.compute, **compute}})


PRESETS: dict[str, Callable[[], VirtualMachine]] = {
    "linux": linux,
    "windows": windows,
    "scale-set": _scale_set,
    "spot": _spot,
    "confidential": _confidential,
    "us-gov": _us_gov,
    "china": _china,
    "classic": _classic,
}


def preset(name: str) -> VirtualMachine:
    """Return a new machine of this preset. Raise VmError if there is no such preset."""
    if name not in PRESETS:
        raise VmError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
