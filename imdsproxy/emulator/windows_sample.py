"""The sample document of a virtual machine with Windows.

It is that of the large samples of Microsoft's IMDS page of December 2020, value by value and in its order. It has only
the fields that they show, so no `provider`, no `customData` and no `tagsList`. An empty value stands for a property
that the machine lacks.
"""

from __future__ import annotations

from typing import Any

from imdsproxy.emulator.samples import GROUP_NAME, alphabetical, disk, network, public_keys

# As the page writes it.
WINDOWS_SUBSCRIPTION = "xxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxx"
WINDOWS_GROUP = f"/subscriptions/{WINDOWS_SUBSCRIPTION}/resourceGroups/{GROUP_NAME}"


def windows_instance() -> dict[str, Any]:
    """Return a new instance document of the Windows machine."""
    interface = network("10.144.133.132", "", "10.144.133.128", "26", "0011AAFFBB22")
    return {"compute": _windows_compute(), "network": interface}


def _windows_compute() -> dict[str, Any]:
    return {
        "azEnvironment": "AZUREPUBLICCLOUD",
        "isHostCompatibilityLayerVm": "true",
        "licenseType": "Windows_Client",
        "location": "westus",
        "name": "examplevmname",
        "offer": "Windows",
        "osProfile": {
            "adminUsername": "admin",
            "computerName": "examplevmname",
            "disablePasswordAuthentication": "true",
        },
        "osType": "linux",
        "placementGroupId": "f67c14ab-e92c-408c-ae2d-da15866ec79a",
        "plan": {"name": "planName", "product": "planProduct", "publisher": "planPublisher"},
        "platformFaultDomain": "36",
        "platformUpdateDomain": "42",
        "publicKeys": public_keys(),
        "publisher": "RDFE-Test-Microsoft-Windows-Server-Group",
        "resourceGroupName": GROUP_NAME,
        "resourceId": f"{WINDOWS_GROUP}/providers/Microsoft.Compute/virtualMachines/examplevmname",
        "securityProfile": {"secureBootEnabled": "true", "virtualTpmEnabled": "false"},
        "sku": "Windows-Server-2012-R2-Datacenter",
        "storageProfile": _windows_storage(),
        "subscriptionId": WINDOWS_SUBSCRIPTION,
        "tags": "baz:bash;foo:bar",
        "version": "15.05.22",
        "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
        "vmScaleSetName": "crpteste9vflji9",
        "vmSize": "Standard_A3",
        "zone": "",
    }


def _windows_storage() -> dict[str, Any]:
    data_disk = alphabetical({**disk("exampledatadiskname", WINDOWS_GROUP), "lun": "0"})
    plain = disk("exampleosdiskname", WINDOWS_GROUP)
    return {
        "dataDisks": [data_disk],
        "imageReference": {
            "id": "",
            "offer": "UbuntuServer",
            "publisher": "Canonical",
            "sku": "16.04.0-LTS",
            "version": "latest",
        },
        # The page has diskSizeGB before diffDiskSettings.
        "osDisk": {
            "caching": "ReadWrite",
            "createOption": "FromImage",
            "diskSizeGB": "30",
            "diffDiskSettings": {"option": "Local"},
            "encryptionSettings": {"enabled": "false"},
            "image": {"uri": ""},
            "managedDisk": plain["managedDisk"],
            "name": "exampleosdiskname",
            "osType": "Linux",
            "vhd": {"uri": ""},
            "writeAcceleratorEnabled": "false",
        },
    }
