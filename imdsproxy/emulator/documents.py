"""
The documents of one virtual machine, and which api-version knows which field.

Values and versions: Microsoft's IMDS page of December 2020, and for later fields the same page of 2025.
The subscription and the public address are made up; an empty value stands for one the machine lacks.
"""

from __future__ import annotations

from typing import Any

INSTANCE_VERSIONS = (
    *("2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01", "2018-04-02"),
    *("2018-10-01", "2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01"),
    *("2019-08-15", "2019-11-01", "2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01"),
    *("2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-08-01", "2021-10-01", "2021-11-01"),
    *("2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15", "2024-03-15", "2024-07-17", "2025-04-07"),
)


def versions_since(first: str) -> tuple[str, ...]:
    """Return the api-versions from `first` on; they sort as text."""
    return tuple(version for version in INSTANCE_VERSIONS if version >= first)


IDENTITY_VERSIONS = versions_since("2018-02-01")
ATTESTED_VERSIONS = versions_since("2018-10-01")
LOAD_BALANCER_VERSIONS = versions_since("2020-10-01")
# "Support for extended metadata begins with" it: cloud-init's DataSourceAzure.
EXTENDED_SINCE = "2021-03-01"

# A field that is not here is as old as the service. Array indices are left out of the names.
# NV: 2017-03-01 is said to be served and no field is said to be that old; it gets those of 2017-04-02.
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

SUBSCRIPTION = "e0000000-0000-4000-8000-0000000005ab"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/macikgo-test-may-23"


def at_version(tree: Any, version: str, name: str = "") -> Any:
    """Return a copy of a tree with only the fields this api-version knows."""
    if isinstance(tree, list):
        return [at_version(item, version, name) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {}
    for key, child in tree.items():
        child_name = f"{name}.{key}" if name else key
        if INTRODUCED.get(child_name, "") <= version:
            kept[key] = at_version(child, version, child_name)
    return kept


def sample_instance() -> dict[str, Any]:
    """Return a new whole instance document, keys in IMDS's order, every primitive a string."""
    return {"compute": _compute(), "network": _network()}


def extended_part() -> dict[str, Any]:
    """
    Return what `extended=true`, which is not documented, adds to a whole document for provisioning agents.

    `ppsType`: cloud-init reads it there. NV, from a mock in a public repository: `hasCustomData`, a boolean.
    """
    return {"extended": {"compute": {"hasCustomData": False, "ppsType": "None"}}}


def sample_load_balancer() -> dict[str, Any]:
    """Return a new load balancer document; its ports are integers."""
    addresses = {"frontendIpAddress": "203.0.113.7", "privateIpAddress": "10.144.133.132"}
    return {
        "loadbalancer": {
            "publicIpAddresses": [dict(addresses)],
            "inboundRules": [
                {
                    "frontendIpAddress": "203.0.113.7",
                    "protocol": "tcp",
                    "frontendPort": 80,
                    "backendPort": 443,
                    "privateIpAddress": "10.144.133.132",
                },
            ],
            "outboundRules": [dict(addresses)],
        },
    }


def _compute() -> dict[str, Any]:
    return {
        "additionalCapabilities": {"hibernationEnabled": "false"},
        "azEnvironment": "AzurePublicCloud",
        "customData": "",
        "evictionPolicy": "",
        "extendedLocation": {"name": "", "type": ""},
        "host": {"id": ""},
        "hostGroup": {"id": ""},
        "isHostCompatibilityLayerVm": "true",
        "licenseType": "",
        "location": "westus",
        "name": "examplevmname",
        "offer": "UbuntuServer",
        "osProfile": {
            "adminUsername": "admin",
            "computerName": "examplevmname",
            "disablePasswordAuthentication": "true",
        },
        "osType": "Linux",
        "physicalZone": "",
        "placementGroupId": "f67c14ab-e92c-408c-ae2d-da15866ec79a",
        "plan": {"name": "planName", "product": "planProduct", "publisher": "planPublisher"},
        "platformFaultDomain": "36",
        "platformSubFaultDomain": "",
        "platformUpdateDomain": "42",
        "priority": "Regular",
        "provider": "Microsoft.Compute",
        "publicKeys": [
            {"keyData": "ssh-rsa 0", "path": "/home/user/.ssh/authorized_keys0"},
            {"keyData": "ssh-rsa 1", "path": "/home/user/.ssh/authorized_keys1"},
        ],
        "publisher": "Canonical",
        "resourceGroupName": "macikgo-test-may-23",
        "resourceId": f"{GROUP}/providers/Microsoft.Compute/virtualMachines/examplevmname",
        "securityProfile": {
            "encryptionAtHost": "false",
            "secureBootEnabled": "true",
            "securityType": "TrustedLaunch",
            "virtualTpmEnabled": "false",
        },
        "sku": "16.04.0-LTS",
        "storageProfile": {
            "dataDisks": [_data_disk()],
            "imageReference": {
                "communityGalleryImageId": "",
                "exactVersion": "",
                "id": "",
                "offer": "UbuntuServer",
                "publisher": "Canonical",
                "sharedGalleryImageId": "",
                "sku": "16.04.0-LTS",
                "version": "latest",
            },
            "osDisk": _os_disk(),
            "resourceDisk": {"size": "4096"},
        },
        "subscriptionId": SUBSCRIPTION,
        "tags": "baz:bash;foo:bar",
        "tagsList": [{"name": "baz", "value": "bash"}, {"name": "foo", "value": "bar"}],
        "userData": "",
        "version": "15.05.22",
        "virtualMachineScaleSet": {"id": ""},
        "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
        "vmScaleSetName": "crpteste9vflji9",
        "vmSize": "Standard_A3",
        "zone": "",
    }


def _disk(name: str) -> dict[str, Any]:
    return {
        "caching": "None",
        "createOption": "Empty",
        "diskSizeGB": "1024",
        "image": {"uri": ""},
        "managedDisk": {
            "id": f"{GROUP}/providers/Microsoft.Compute/disks/{name}",
            "storageAccountType": "Standard_LRS",
        },
        "name": name,
        "vhd": {"uri": ""},
        "writeAcceleratorEnabled": "false",
    }


def _data_disk() -> dict[str, Any]:
    ultra = {"bytesPerSecondThrottle": "", "diskCapacityBytes": "", "opsPerSecondThrottle": ""}
    shape = {"isSharedDisk": "false", "isUltraDisk": "false", "lun": "0"}
    return _alphabetical({**_disk("exampledatadiskname"), **ultra, **shape})


def _os_disk() -> dict[str, Any]:
    encryption = {
        "diskEncryptionKey": {"secretUrl": "", "sourceVault": {"id": ""}},
        "enabled": "false",
        "keyEncryptionKey": {"keyUrl": "", "sourceVault": {"id": ""}},
    }
    system = {
        "caching": "ReadWrite",
        "createOption": "FromImage",
        "diffDiskSettings": {"option": "Local"},
        "diskSizeGB": "30",
        "encryptionSettings": encryption,
        "osType": "Linux",
    }
    return _alphabetical({**_disk("exampleosdiskname"), **system})


def _alphabetical(fields: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(fields.items(), key=lambda item: item[0].lower()))


def _network() -> dict[str, Any]:
    return {
        "interface": [
            {
                "ipv4": {
                    "ipAddress": [{"privateIpAddress": "10.144.133.132", "publicIpAddress": ""}],
                    "subnet": [{"address": "10.144.133.128", "prefix": "26"}],
                },
                "ipv6": {"ipAddress": [{"privateIpAddress": "b4bc:8fce:f33b:4990:cced:d94e:ab4f:6ea0"}]},
                "macAddress": "0011AAFFBB22",
            },
        ],
    }
