from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from imdsproxy.emulator.samples import sample_load_balancer
from imdsproxy.emulator.vm.fields import with_fields, with_set
from imdsproxy.emulator.vm.model import VirtualMachine, VmError
from imdsproxy.emulator.vm.presets import linux, preset


def value_at(machine: VirtualMachine, path: str) -> Any:
    element: Any = machine.instance
    for step in path.split("."):
        element = element[int(step)] if isinstance(element, list) else element[step]
    return element


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("compute.location=norwayeast", "compute.location", "norwayeast"),
        ("compute.zone=2", "compute.zone", "2"),
        ("compute.zone=", "compute.zone", ""),
        ("compute.name=a=b", "compute.name", "a=b"),
        ("compute.securityProfile.secureBootEnabled=false", "compute.securityProfile.secureBootEnabled", "false"),
        ('compute.plan={"name":"n"}', "compute.plan", {"name": "n", "product": "", "publisher": ""}),
        ('compute.publicKeys=[{"keyData":1,"path":null}]', "compute.publicKeys", [{"keyData": "1", "path": ""}]),
        ("compute.publicKeys.1.path=/x", "compute.publicKeys.1", {"keyData": "ssh-rsa 1", "path": "/x"}),
        ("network.interface.0.macAddress=AA", "network.interface.0.macAddress", "AA"),
        (
            'network.interface.0.ipv6.ipAddress=[{"privateIpAddress":"fd00::4"}]',
            "network.interface.0.ipv6.ipAddress.0.privateIpAddress",
            "fd00::4",
        ),
        ("cloud=china", "compute.azEnvironment", "AzureChinaCloud"),
        ("user-data=hello", "compute.userData", "aGVsbG8="),
        ("compute.tags=a:b;c:d:e", "compute.tagsList.1", {"name": "c", "value": "d:e"}),
        ('compute.tags={"env":"test","n":1}', "compute.tags", "env:test;n:1"),
        ('compute.tagsList=[{"name":"a","value":"x;y"}]', "compute.tags", "a:x;y"),
    ],
)
def test_set_changes_one_field(text: str, path: str, value: Any) -> None:
    changed = with_set(linux(), text)
    assert value_at(changed, path) == value
    assert with_set(changed, text) == changed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("compute.tag=a", "compute.tag is not a field; did you mean compute.tags"),
        ("compute.osprofile.adminUser=a", "did you mean compute.osProfile"),
        ("compute.plan.title=a", "compute.plan.title is not a field; known are compute.plan.name"),
        ('compute.plan={"nam":"x"}', "compute.plan.nam is not a field; did you mean compute.plan.name"),
        ("compute.plan=x", "compute.plan has fields of its own, as compute.plan.name; 'x' is no object"),
        ("compute.publicKeys=x", "compute.publicKeys is a list; write it as a JSON list, not 'x'"),
        ("compute.publicKeys.2.path=x", "compute.publicKeys.2 does not exist; compute.publicKeys has 2 elements"),
        ("compute.zone.deep=x", "compute.zone.deep does not exist, because compute.zone is a single value"),
        ("location=x", "location is not a field"),
        ("token-live=1", "token-live is not a field; did you mean token-life?"),
        ("compute.zone", "has no value; write --set NAME=VALUE"),
        ("cloud=moon", "there is no cloud 'moon'; choose one of public, us-gov, china, germany"),
        ("token-life=soon", "token-life is the lifetime of an access token in seconds, 0 or more, not 'soon'"),
        ("token-life=-1", "token-life is the lifetime"),
        ("token-life=true", "token-life is the lifetime"),
        ("classic=yes", "classic is true or false, not 'yes'"),
        ("versions=2021-1", "versions has '2021-1', which is not an api-version; write it as 2021-02-01"),
        ("versions=7", "versions is a list of api-versions"),
        ("newest-version=2016-01-01", "is before the first api-version, 2017-03-01"),
        ("load-balancer=x", "load-balancer is true, false or its document, not 'x'"),
        (
            'load-balancer={"inbound":[]}',
            "load-balancer.inbound is not a field; did you mean load-balancer.inboundRules",
        ),
        ("identities=7", "identities is a list, as system,first or none, not 7"),
        ("identities=system,system", "identities has more than one with the role system"),
        ("identities=web,web", "two identities have the same client-id"),
        ('identities=[{"rol":"user"}]', "identities.0.rol is not a field; did you mean identities.0.role"),
        ('identities=[{"role":"admin"}]', "identities.0.role is system or user, not 'admin'"),
        ('identities=[{"role":"system","resource-id":"/x"}]', "has the role system, and so no resource-id"),
        ("identities=[7]", "identities.0 is a name or an object with name, role, client-id"),
        ('identities=[{"name":7}]', "identities.0.name is text, not 7"),
        ("tenant-id=7", "tenant-id is text, not 7"),
        ('compute.tagsList=[{"name":"a"}]', "an element of compute.tagsList has a name and a value"),
        ("compute.tagsList=x", "compute.tagsList is a list"),
    ],
)
def test_mistake_names_the_field_and_the_remedy(text: str, words: str) -> None:
    with pytest.raises(VmError) as raised:
        with_set(linux(), text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_field_that_the_machine_lacks_is_inserted_in_its_place() -> None:
    machine = with_set(preset("windows"), "compute.provider=Microsoft.Compute")
    names = list(machine.compute)
    assert names[names.index("provider") - 1 : names.index("provider") + 2] == [
        *("platformUpdateDomain", "provider", "publicKeys")
    ]


def test_tags_of_a_machine_without_a_list_stay_text() -> None:
    assert "tagsList" not in with_set(preset("windows"), "compute.tags=a:b").compute


def test_identities_are_named_and_keep_their_ids() -> None:
    machine = with_set(linux(), "identities=web,system,jobs")
    assert [(each.role, each.name) for each in machine.identities] == [
        *(("system", "examplevmname"), ("user", "web"), ("user", "jobs"))
    ]
    assert with_set(linux(), "identities=jobs").identities[0] == machine.identities[2]
    assert machine.identities[1].resource_id.endswith("/userAssignedIdentities/web")
    assert with_set(linux(), "identities=none").identities == ()


def test_every_property_of_an_identity_can_be_given() -> None:
    given = {"name": "n", "client-id": "c", "object-id": "o", "resource-id": "/r", "tenant-id": "t"}
    (identity,) = with_fields(linux(), {"identities": [given]}).identities
    assert (identity.name, identity.client_id, identity.object_id) == ("n", "c", "o")
    assert (identity.resource_id, linux().tenant_of(identity)) == ("/r", "t")


def test_region_can_lag() -> None:
    assert with_set(linux(), "newest-version=2021-02-01").versions[-2:] == ("2021-01-01", "2021-02-01")
    assert with_set(linux(), "versions=2021-02-01, 2019-11-01").versions == ("2019-11-01", "2021-02-01")
    assert with_set(linux(), "event-versions=2020-07-01").event_versions == ("2020-07-01",)


def test_load_balancer_is_switched_or_given() -> None:
    alone = with_set(linux(), "load-balancer=false")
    assert alone.load_balancer is None
    assert with_set(alone, "load-balancer=true").load_balancer == sample_load_balancer()
    changed = with_set(alone, 'load-balancer={"inboundRules":[]}')
    assert changed.load_balancer == {
        "loadbalancer": {"publicIpAddresses": [], "inboundRules": [], "outboundRules": []},
    }


def test_other_fields_are_taken_over() -> None:
    changed = with_fields(linux(), {"tenant-id": "t", "token-life": 60, "classic": True})
    assert (changed.tenant_id, changed.token_life, changed.classic) == ("t", 60.0, True)


def test_field_of_a_captured_document_that_is_newer_than_the_program_can_be_set() -> None:
    machine = linux()
    newer = {**machine.compute, "signatureInfo": {"kind": "x", "list": []}}
    captured = replace(machine, instance={**machine.instance, "compute": newer})
    changed = with_set(captured, 'compute.signatureInfo={"kind":"y"}')
    assert changed.compute["signatureInfo"] == {"kind": "y", "list": []}
    assert with_set(captured, "compute.signatureInfo.kind=z").compute["signatureInfo"]["kind"] == "z"
