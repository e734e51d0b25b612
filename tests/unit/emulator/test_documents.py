from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from imdsproxy.emulator.documents import (
    INSTANCE_VERSIONS,
    INTRODUCED,
    at_version,
    versions_since,
)
from imdsproxy.emulator.samples import sample_instance, sample_load_balancer

if TYPE_CHECKING:
    from collections.abc import Iterator


def containers(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(child)


def names(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, list):
        for item in tree:
            yield from names(item, prefix)
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield prefix + key
            yield from names(child, f"{prefix}{key}.")


def test_versions_are_listed_oldest_first_and_once() -> None:
    assert list(INSTANCE_VERSIONS) == sorted(set(INSTANCE_VERSIONS))
    assert len(INSTANCE_VERSIONS) == 35
    assert versions_since("2024-03-15") == ("2024-03-15", "2024-07-17", "2025-04-07")


def test_every_primitive_is_a_string_and_keys_are_in_order() -> None:
    for container in containers(sample_instance()):
        assert list(container) == sorted(container, key=str.lower)
        assert all(isinstance(child, str | dict | list) for child in container.values())


def test_version_table_names_only_fields_that_exist_and_versions_that_are_served() -> None:
    assert INTRODUCED.keys() <= set(names(sample_instance()))
    assert set(INTRODUCED.values()) <= set(INSTANCE_VERSIONS)


OLDEST = ["location", "name", "offer", "osType", "platformFaultDomain", "platformUpdateDomain", "publisher"]


def test_oldest_version_has_only_the_oldest_fields() -> None:
    assert list(at_version(sample_instance(), "2017-04-02")["compute"]) == [
        *OLDEST,
        *("sku", "version", "vmId", "vmSize"),
    ]


@pytest.mark.parametrize(
    ("name", "before", "since"),
    [
        ("azEnvironment", "2018-04-02", "2018-10-01"),
        ("customData", "2018-10-01", "2019-02-01"),
        ("isHostCompatibilityLayerVm", "2019-11-01", "2020-06-01"),
        ("licenseType", "2020-07-15", "2020-09-01"),
        ("placementGroupId", "2017-04-02", "2017-08-01"),
        ("plan", "2018-02-01", "2018-04-02"),
        ("resourceId", "2019-02-01", "2019-03-11"),
        ("storageProfile", "2019-04-30", "2019-06-01"),
        ("tagsList", "2019-06-01", "2019-06-04"),
        ("userData", "2020-12-01", "2021-01-01"),
        ("physicalZone", "2023-07-01", "2023-11-15"),
        ("zone", "2017-10-01", "2017-12-01"),
    ],
)
def test_field_appears_with_its_version(name: str, before: str, since: str) -> None:
    assert name not in at_version(sample_instance(), before)["compute"]
    assert name in at_version(sample_instance(), since)["compute"]


def test_fields_below_a_field_have_versions_of_their_own() -> None:
    def profile(version: str) -> list[str]:
        return list(at_version(sample_instance(), version)["compute"]["osProfile"])

    assert profile("2020-09-01") == ["adminUsername", "computerName"]
    assert profile("2020-10-01") == ["adminUsername", "computerName", "disablePasswordAuthentication"]
    disks = at_version(sample_instance(), "2021-03-01")["compute"]["storageProfile"]["dataDisks"]
    assert "isUltraDisk" not in disks[0]


def test_newest_version_is_a_copy_of_the_whole_document() -> None:
    first = sample_instance()
    assert at_version(first, INSTANCE_VERSIONS[-1]) == first == sample_instance()
    first["compute"]["location"] = "elsewhere"
    assert sample_instance()["compute"]["location"] == "westus"


def test_tags_and_tags_list_are_equal() -> None:
    compute = sample_instance()["compute"]
    assert compute["tags"] == ";".join(f"{tag['name']}:{tag['value']}" for tag in compute["tagsList"])


def test_load_balancer_ports_are_integers() -> None:
    rule = json.loads(json.dumps(sample_load_balancer()))["loadbalancer"]["inboundRules"][0]
    assert (rule["frontendPort"], rule["backendPort"]) == (80, 443)
