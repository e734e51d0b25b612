"""The sample documents of one virtual machine.

Values: Microsoft's IMDS page of December 2020, and for later fields the same page of 2025. The subscription and the
public address are invented. An empty value stands for a property that the machine lacks.
"""

from __future__ import annotations

from typing import Any

SUBSCRIPTION = "e0000000-0000-4000-8000-0000000005ab"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/macikgo-test-may-23"


def sample_instance() -> dict[str, Any]:
    """Return a new instance document, with keys in the order of IMDS and every primitive a string."""
    return {"compute": _compute(), "network": _network()}


def sample_load_balancer() -> dict[str, Any]:
    """Return a new load balancer document, whose ports are integers."""
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
