"""Which fields of an answer say nothing about a person or an organisation. Every other text is personal.

A field that is not listed here, because it is newer than this list, is therefore replaced. Names omit array indices.
"""

from __future__ import annotations

_DISK = (
    *("caching", "createOption", "diskSizeGB", "lun", "writeAcceleratorEnabled", "managedDisk.storageAccountType"),
    *("bytesPerSecondThrottle", "diskCapacityBytes", "isSharedDisk", "isUltraDisk", "opsPerSecondThrottle", "osType"),
    *("diffDiskSettings", "encryptionSettings.enabled"),
)
_STORAGE = (
    *(f"{disk}.{name}" for disk in ("dataDisks", "osDisk") for name in _DISK),
    *(f"imageReference.{name}" for name in ("exactVersion", "offer", "publisher", "sku", "version")),
    "resourceDisk",
)
_COMPUTE = (
    *("additionalCapabilities", "azEnvironment", "evictionPolicy", "extendedLocation", "isHostCompatibilityLayerVm"),
    *("licenseType", "location", "offer", "osProfile.disablePasswordAuthentication", "osType", "physicalZone", "plan"),
    *("platformFaultDomain", "platformSubFaultDomain", "platformUpdateDomain", "priority", "provider", "publisher"),
    *("securityProfile", "sku", "version", "vmSize", "zone"),
    *(f"storageProfile.{name}" for name in _STORAGE),
    "tagsList.name",
)
_EVENT = ("EventSource", "EventStatus", "EventType", "NotBefore", "ResourceType")
PUBLIC = (
    *(f"compute.{name}" for name in _COMPUTE),
    *("network.interface.ipv4.subnet.prefix", "extended", "apiVersions", "error", "newest-versions"),
    "loadbalancer.inboundRules.protocol",
    *(f"Events.{name}" for name in _EVENT),
)
TAGS = ("compute", "tags")  # in lower case
TAG_VALUE = ("compute", "tagsList", "value")


def within(path: tuple[str, ...], fields: tuple[str, ...]) -> bool:
    """Return whether a path is one of the fields or below one; case does not matter."""
    names = [name.lower() for name in path]
    return any(names[: field.count(".") + 1] == field.lower().split(".") for field in fields)


def is_public(path: tuple[str, ...], value: str) -> bool:
    """Return whether a text may stay: it is empty, a truth value, or in a field that is not personal."""
    return value in ("", "true", "false") or within(path, PUBLIC)
