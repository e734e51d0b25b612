from __future__ import annotations

import pytest

from imdsproxy.emulator.documents import INSTANCE_VERSIONS, INTRODUCED
from imdsproxy.emulator.samples import sample_instance
from imdsproxy.emulator.vm.model import CLOUDS, VmError
from imdsproxy.emulator.vm.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_complete_and_shares_nothing(name: str) -> None:
    first, second = preset(name), preset(name)
    assert first == second
    assert first.instance["network"] is not second.instance["network"]
    assert first.compute.keys() <= sample_instance()["compute"].keys()
    assert set(first.versions) <= set(INSTANCE_VERSIONS)
    assert first.introduced.keys() <= INTRODUCED.keys()
    assert first.compute["azEnvironment"].lower() == first.cloud.environment.lower()


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("linux", "osType", "Linux"),
        ("windows", "licenseType", "Windows_Client"),
        ("windows", "azEnvironment", "AZUREPUBLICCLOUD"),
        ("scale-set", "vmScaleSetName", "examplescaleset"),
        ("spot", "priority", "Spot"),
        ("spot", "evictionPolicy", "Deallocate"),
        ("us-gov", "azEnvironment", "AzureUSGovernmentCloud"),
        ("china", "azEnvironment", "AzureChinaCloud"),
    ],
)
def test_preset_has_its_characteristic_field(name: str, field: str, value: str) -> None:
    assert preset(name).compute[field] == value


def test_confidential_machine_says_so() -> None:
    assert preset("confidential").compute["securityProfile"]["securityType"] == "ConfidentialVM"


def test_classic_machine_has_no_identity_and_no_load_balancer() -> None:
    machine = preset("classic")
    assert (machine.classic, machine.identities, machine.load_balancer) == (True, (), None)


@pytest.mark.parametrize(
    ("name", "cloud"), [("linux", "public"), ("windows", "public"), ("us-gov", "us-gov"), ("china", "china")]
)
def test_cloud_follows_from_the_environment_in_any_case(name: str, cloud: str) -> None:
    assert preset(name).cloud is CLOUDS[cloud]


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(VmError, match=r"^there is no preset 'bsd'; choose one of linux, windows, scale-set"):
        preset("bsd")


def test_identities_have_a_role_and_a_tenant() -> None:
    machine = preset("linux")
    assert [identity.role for identity in machine.identities] == ["system", "user", "user"]
    assert {machine.tenant_of(identity) for identity in machine.identities} == {machine.tenant_id}
    assert (machine.name, machine.user_data) == ("examplevmname", "")
