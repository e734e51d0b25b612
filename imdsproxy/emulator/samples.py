"""The sample documents of a virtual machine with Linux, and the parts that `windows_sample` has as well.

The machine has the values of the small samples of Microsoft's IMDS page of December 2020, and the fields of the same
page of 2025. Its subscription and its public addresses are invented. An empty value stands for a property that the
machine lacks.
"""

from __future__ import annotations

from typing import Any

SUBSCRIPTION = "e0000000-0000-4000-8000-0000000005ab"
GROUP_NAME = "macikgo-test-may-23"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP_NAME}"


def sample_instance() -> dict[str, Any]:
    """Return a new instance document of the Linux machine, with keys in the order of IMDS and strings as values."""
    return {"compute": _compute(), "network": network("10.1.0.4", "203.0.113.4", "10.1.0.0", "24", "000D3AF806EC")}


def sample_load_balancer() -> dict[str, Any]:
    """Return a new load balancer document, whose ports are integers."""
    addresses = {"frontendIpAddress": "203.0.113.7", "privateIpAddress": "10.1.0.4"}
    return {
        "loadbalancer": {
            "publicIpAddresses": [dict(addresses)],
            "inboundRules": [
                {
                    "frontendIpAddress": "203.0.113.7",
                    "protocol": "tcp",
                    "frontendPort": 80,
                    "backendPort": 443,
                    "privateIpAddress": "10.1.0.4",
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
        "isHostCompatibilityLayerVm": "false",
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
        "placementGroupId": "",
        "plan": {"name": "", "product": "", "publisher": ""},
        "platformFaultDomain": "0",
        "platformSubFaultDomain": "",
        "platformUpdateDomain": "0",
        "priority": "Regular",
        "provider": "Microsoft.Compute",
        "publicKeys": public_keys(),
        "publisher": "Canonical",
        "resourceGroupName": GROUP_NAME,
        "resourceId": f"{GROUP}/providers/Microsoft.Compute/virtualMachines/examplevmname",
        "securityProfile": {
            "encryptionAtHost": "false",
            "secureBootEnabled": "true",
            "securityType": "TrustedLaunch",
            "virtualTpmEnabled": "true",
        },
        "sku": "16.04.0-LTS",
        "storageProfile": {
            "dataDisks": [_data_disk()],
            "imageReference": {
                "communityGalleryImageId": "",
                "exactVersion": "",
                "id": "",
                **_IMAGE,
            },
            "osDisk": _os_disk(),
            "resourceDisk": {"size": "4096"},
        },
        "subscriptionId": SUBSCRIPTION,
        "tags": "Department:IT;Environment:Test;Role:WebRole",
        "tagsList": [
            {"name": "Department", "value": "IT"},
            {"name": "Environment", "value": "Test"},
            {"name": "Role", "value": "WebRole"},
        ],
        "userData": "",
        "version": "15.05.22",
        "virtualMachineScaleSet": {"id": ""},
        "vmId": "5c08b38e-4d57-4c23-ac45-aca61037f084",
        "vmScaleSetName": "",
        "vmSize": "Standard_A3",
        "zone": "",
    }


_IMAGE = {
    "offer": "UbuntuServer",
    "publisher": "Canonical",
    "sharedGalleryImageId": "",
    "sku": "16.04.0-LTS",
    "version": "latest",
}


def public_keys() -> list[dict[str, str]]:
    """Return the public keys of a machine."""
    return [
        {"keyData": "ssh-rsa 0", "path": "/home/user/.ssh/authorized_keys0"},
        {"keyData": "ssh-rsa 1", "path": "/home/user/.ssh/authorized_keys1"},
    ]


def disk(name: str, group: str = GROUP) -> dict[str, Any]:
    """Return the fields that every disk has."""
    return {
        "caching": "None",
        "createOption": "Empty",
        "diskSizeGB": "1024",
        "image": {"uri": ""},
        "managedDisk": {
            "id": f"{group}/providers/Microsoft.Compute/disks/{name}",
            "storageAccountType": "Standard_LRS",
        },
        "name": name,
        "vhd": {"uri": ""},
        "writeAcceleratorEnabled": "false",
    }


def _data_disk() -> dict[str, Any]:
    ultra = {"bytesPerSecondThrottle": "", "diskCapacityBytes": "", "opsPerSecondThrottle": ""}
    shape = {"isSharedDisk": "false", "isUltraDisk": "false", "lun": "0"}
    return alphabetical({**disk("exampledatadiskname"), **ultra, **shape})


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
    return alphabetical({**disk("exampleosdiskname"), **system})


def alphabetical(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields in the order of their names, without case."""
    return dict(sorted(fields.items(), key=lambda item: item[0].lower()))


def network(private: str, public: str, subnet: str, prefix: str, mac: str) -> dict[str, Any]:
    """Return the network of a machine with one interface and one address."""
    return {
        "interface": [
            {
                "ipv4": {
                    "ipAddress": [{"privateIpAddress": private, "publicIpAddress": public}],
                    "subnet": [{"address": subnet, "prefix": prefix}],
                },
                "ipv6": {"ipAddress": []},
                "macAddress": mac,
            },
        ],
    }
