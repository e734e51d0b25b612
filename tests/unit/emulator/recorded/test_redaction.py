from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imdsproxy.emulator.messages import compact
from imdsproxy.emulator.recorded.personal import is_public
from imdsproxy.emulator.recorded.redaction import Redaction
from imdsproxy.emulator.recorded.spans import strings
from imdsproxy.emulator.vm.presets import PRESETS, preset
from tests.size import examples

SUBSCRIPTION = "11111111-2222-4333-8444-555555555555"
DOCUMENT = {
    "compute": {
        "location": "westus",
        "name": "Payroll",
        "newField": "anything",
        "osProfile": {"adminUsername": "alice", "computerName": "payroll", "disablePasswordAuthentication": "true"},
        "osType": "Linux",
        "publicKeys": [{"keyData": "ssh-rsa AAAA alice@desk", "path": "/home/alice/.ssh/authorized_keys"}],
        "resourceGroupName": "secrets",
        "resourceId": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/SECRETS/providers/Microsoft.Compute/"
        "virtualMachines/Payroll",
        "subscriptionId": SUBSCRIPTION,
        "tags": "owner:alice;stage:",
        "tagsList": [{"name": "owner", "value": "alice"}, {"name": "stage", "value": ""}],
        "userData": "c2VjcmV0",
        "zone": "1",
    },
    "network": {
        "interface": [
            {
                "ipv4": {
                    "ipAddress": [{"privateIpAddress": "10.0.0.1", "publicIpAddress": "20.1.2.3"}],
                    "subnet": [{"address": "10.0.0.0", "prefix": "24"}],
                },
                "ipv6": {"ipAddress": [{"privateIpAddress": "fd00::7"}]},
                "macAddress": "000D3AF806EC",
            }
        ]
    },
}


def redacted(document: Any, *keep: str) -> Any:
    redaction = Redaction(keep)
    text = compact(document).decode()
    redaction.learn([text])
    return json.loads(redaction.body(text))


def test_what_is_personal_is_replaced_in_its_own_form() -> None:
    result = redacted(DOCUMENT)
    assert result["compute"] == {
        "location": "westus",
        "name": "name-1",
        "newField": "newfield-1",
        "osProfile": {
            "adminUsername": "adminusername-1",
            "computerName": "name-1",
            "disablePasswordAuthentication": "true",
        },
        "osType": "Linux",
        "publicKeys": [{"keyData": "ssh-rsa 1", "path": "path-1"}],
        "resourceGroupName": "resourcegroupname-1",
        "resourceId": "/subscriptions/e0000000-0000-4000-8000-000000000001/resourceGroups/RESOURCEGROUPNAME-1/"
        "providers/Microsoft.Compute/virtualMachines/name-1",
        "subscriptionId": "e0000000-0000-4000-8000-000000000001",
        "tags": "owner:adminusername-1;stage:",
        "tagsList": [{"name": "owner", "value": "adminusername-1"}, {"name": "stage", "value": ""}],
        "userData": "cmVkYWN0ZWQg0001",
        "zone": "1",
    }
    assert result["network"]["interface"][0] == {
        "ipv4": {
            # 10.0.0.1 is in the recording itself.
            "ipAddress": [{"privateIpAddress": "10.0.0.2", "publicIpAddress": "203.0.113.1"}],
            "subnet": [{"address": "10.0.0.3", "prefix": "24"}],
        },
        "ipv6": {"ipAddress": [{"privateIpAddress": "2001:db8::1"}]},
        "macAddress": "020000000001",
    }


def test_kept_field_is_kept_wherever_its_value_stands() -> None:
    result = redacted(DOCUMENT, "compute.name", "compute.tagsList", "network.interface.ipv4")
    assert result["compute"]["name"] == result["compute"]["osProfile"]["computerName"] == "Payroll"
    assert result["compute"]["resourceId"].endswith("/virtualMachines/Payroll")
    assert result["compute"]["tags"] == "owner:alice;stage:"
    assert result["network"]["interface"][0]["ipv4"] == DOCUMENT["network"]["interface"][0]["ipv4"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("tags", "values", "expected"),
    [
        ("a:x;secret:y", ["x;secret:y"], "tags-1"),
        ("secret", ["secret"], "tags-1"),
        ("a:b:c", ["b:c"], "a:value-1"),
    ],
)
def test_tags_that_can_be_read_in_two_ways_are_replaced_as_a_whole(tags: str, values: list[str], expected: str) -> None:
    tags_list = [{"name": "a", "value": value} for value in values]
    compute = redacted({"compute": {"tags": tags, "tagsList": tags_list}})["compute"]
    assert compute["tags"] == expected
    assert "secret" not in json.dumps(compute)


def test_replacements_are_listed_by_field_without_the_values() -> None:
    redaction = Redaction()
    text = compact(DOCUMENT).decode()
    redaction.learn([text])
    redaction.body(text)
    assert redaction.replaced["compute.name"] == ["name-1"]
    assert "Payroll" not in str(redaction.replaced)
    assert "compute.location" not in redaction.replaced


GUIDS = st.uuids().map(str)
NAMES = st.from_regex(r"[a-z][a-zA-Z0-9_-]{3,12}", fullmatch=True)
IDS = st.builds(
    lambda subscription, group, name: (
        f"/subscriptions/{subscription}/resourceGroups/{group}/providers/X.Y/things/{name}"
    ),
    *(GUIDS, NAMES, NAMES),
)
VALUES = GUIDS | NAMES | IDS | st.ip_addresses().map(str) | st.text() | st.sampled_from(["", "true", "10.0.0.1"])
FIELDS = st.sampled_from(
    ["name", "location", "resourceId", "userData", "unheardOf", "tags", "keyData", "vmId", "osType", "adminUsername"]
)
DOCUMENTS = st.dictionaries(FIELDS, VALUES | st.lists(VALUES, max_size=3), max_size=8).map(lambda it: {"compute": it})


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=4))
def test_nothing_personal_is_left_and_equal_values_stay_equal(documents: list[Any]) -> None:
    texts = [compact(document).decode() for document in documents]
    redaction = Redaction()
    redaction.learn(texts)
    results = [redaction.body(text) for text in texts]
    mapping: dict[str, str] = {}
    originals = set()
    for before, after in zip(texts, results, strict=True):
        assert [path for path, _ in strings(before)] == [path for path, _ in strings(after)]
        for (path, old), (_, new) in zip(strings(before), strings(after), strict=True):
            assert bool(old) == bool(new)
            if is_public(path, old):
                assert old == new
            elif path != ("compute", "tags"):
                originals.add(old.lower())
                assert mapping.setdefault(old.lower(), new.lower()) == new.lower()
    assert len(set(mapping.values())) == len(mapping)
    assert not originals & set(mapping.values())


@pytest.mark.parametrize("name", PRESETS)
def test_redacting_twice_keeps_the_form(name: str) -> None:
    once = redacted(dict(preset(name).instance))
    twice = redacted(once)
    shape = [(path, bool(value)) for path, value in strings(json.dumps(once))]
    assert [(path, bool(value)) for path, value in strings(json.dumps(twice))] == shape
