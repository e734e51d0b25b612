"""The api-versions of IMDS, and the fields that each of them has.

Source: Microsoft's IMDS page of December 2020, and for later fields the same page of 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

INSTANCE_VERSIONS = (
    *("2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01", "2018-04-02"),
    *("2018-10-01", "2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01"),
    *("2019-08-15", "2019-11-01", "2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01"),
    *("2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-08-01", "2021-10-01", "2021-11-01"),
    *("2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15", "2024-03-15", "2024-07-17", "2025-04-07"),
)


def versions_since(first: str) -> tuple[str, ...]:
    """Return the api-versions from `first` on. They sort as text."""
    return tuple(version for version in INSTANCE_VERSIONS if version >= first)


IDENTITY_VERSIONS = versions_since("2018-02-01")
ATTESTED_VERSIONS = versions_since("2018-10-01")
LOAD_BALANCER_VERSIONS = versions_since("2020-10-01")
# The first api-version with extended metadata, according to cloud-init's DataSourceAzure.
EXTENDED_SINCE = "2021-03-01"

# The first api-version of each field. A field that is not listed is as old as the service. Names omit array indices.
# Not verified: 2017-03-01 is documented, but no field is documented for it; it gets those of 2017-04-02.
INTRODUCED = {
    "compute.additionalCapabilities": "2021-11-01",
    "compute.azEnvironment": "2018-10-01",
    "compute.customData": "2019-02-01",
    "compute.evictionPolicy": "2020-12-01",
    "compute.extendedLocation": "2021-03-01",
    "compute.host": "2021-11-15",
    "compute.hostGroup": "2021-11-15",
    "compute.isHostCompatibilityLayerVm": "2020-06-01",
    "compute.licenseType": "2020-09-01",
    "compute.osProfile": "2020-07-15",
    "compute.osProfile.disablePasswordAuthentication": "2020-10-01",
    "compute.physicalZone": "2023-11-15",
    "compute.placementGroupId": "2017-08-01",
    "compute.plan": "2018-04-02",
    "compute.platformSubFaultDomain": "2021-10-01",
    "compute.priority": "2020-12-01",
    "compute.provider": "2018-10-01",
    "compute.publicKeys": "2018-04-02",
    "compute.resourceGroupName": "2017-08-01",
    "compute.resourceId": "2019-03-11",
    "compute.securityProfile": "2020-06-01",
    "compute.securityProfile.encryptionAtHost": "2021-11-01",
    "compute.securityProfile.securityType": "2021-12-13",
    "compute.storageProfile": "2019-06-01",
    "compute.storageProfile.dataDisks.bytesPerSecondThrottle": "2021-05-01",
    "compute.storageProfile.dataDisks.diskCapacityBytes": "2021-05-01",
    "compute.storageProfile.dataDisks.isSharedDisk": "2021-05-01",
    "compute.storageProfile.dataDisks.isUltraDisk": "2021-05-01",
    "compute.storageProfile.dataDisks.opsPerSecondThrottle": "2021-05-01",
    "compute.storageProfile.imageReference.communityGalleryImageId": "2023-07-01",
    "compute.storageProfile.imageReference.exactVersion": "2023-07-01",
    "compute.storageProfile.imageReference.sharedGalleryImageId": "2023-07-01",
    "compute.storageProfile.osDisk.encryptionSettings.diskEncryptionKey": "2021-11-01",
    "compute.storageProfile.osDisk.encryptionSettings.keyEncryptionKey": "2021-11-01",
    "compute.storageProfile.resourceDisk": "2021-02-01",
    "compute.subscriptionId": "2017-08-01",
    "compute.tags": "2017-08-01",
    "compute.tagsList": "2019-06-04",
    "compute.userData": "2021-01-01",
    "compute.virtualMachineScaleSet": "2021-03-01",
    "compute.vmScaleSetName": "2017-12-01",
    "compute.zone": "2017-12-01",
}


def at_version(tree: Any, version: str, introduced: Mapping[str, str] = INTRODUCED, name: str = "") -> Any:
    """Return a copy of a tree with only the fields of this api-version.

    Args:
        tree: A document, or a part of one.
        version: The api-version.
        introduced: The first api-version of each field.
        name: The dotted name of the root of the tree, without array indices.
    """
    if isinstance(tree, list):
        return [at_version(item, version, introduced, name) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {}
    for key, child in tree.items():
        child_name = f"{name}.{key}" if name else key
        if introduced.get(child_name, "") <= version:
            kept[key] = at_version(child, version, introduced, child_name)
    return kept


def extended_part() -> dict[str, Any]:
    """Return what `extended=true`, an undocumented parameter, adds to the instance document for provisioning agents.

    cloud-init reads `ppsType` there. Not verified: `hasCustomData`, a boolean in a public mock of IMDS.
    """
    return {"extended": {"compute": {"hasCustomData": False, "ppsType": "None"}}}
