from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
from typing import Any

import pytest

from imdsproxy.emulator import identity as module
from imdsproxy.emulator.identity import (
    NOT_FOUND,
    ONE_SELECTOR,
    SEVERAL,
    SYSTEM_ASSIGNED,
    USER_ASSIGNED,
    Identity,
    ManagedIdentity,
)
from imdsproxy.emulator.keys import Keys

NOW = 1_700_000_000.5
FIRST, SECOND = USER_ASSIGNED


def claims(document: dict[str, str]) -> dict[str, Any]:
    part = document["access_token"].split(".")[1]
    read: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return read


@pytest.mark.parametrize(
    ("identities", "parameters", "expected"),
    [
        ((), {}, NOT_FOUND),
        ((), {"client_id": SYSTEM_ASSIGNED.client_id}, NOT_FOUND),
        ((SYSTEM_ASSIGNED,), {}, SYSTEM_ASSIGNED),
        ((SYSTEM_ASSIGNED, FIRST, SECOND), {}, SYSTEM_ASSIGNED),
        ((FIRST,), {}, FIRST),
        ((FIRST, SECOND), {}, SEVERAL),
        ((FIRST, SECOND), {"client_id": SECOND.client_id.upper()}, SECOND),
        ((FIRST, SECOND), {"object_id": FIRST.object_id}, FIRST),
        ((FIRST, SECOND), {"msi_res_id": SECOND.resource_id.upper()}, SECOND),
        ((FIRST, SECOND), {"mi_res_id": FIRST.resource_id}, FIRST),
        ((FIRST, SECOND), {"client_id": FIRST.object_id}, NOT_FOUND),
        ((SYSTEM_ASSIGNED, FIRST), {"msi_res_id": ""}, NOT_FOUND),
        ((FIRST,), {"client_id": ""}, NOT_FOUND),
        ((FIRST, SECOND), {"client_id": FIRST.client_id, "object_id": FIRST.object_id}, ONE_SELECTOR),
    ],
)
def test_choose_selects_the_identity(
    identities: tuple[Identity, ...], parameters: dict[str, str], expected: Identity | str
) -> None:
    assert ManagedIdentity(identities).choose(parameters) == expected


def test_new_token_has_its_times() -> None:
    document = ManagedIdentity().token(FIRST, "r", NOW, bypass_cache=False)
    assert document["expires_in"] == "86400"
    assert document["expires_on"] == "1700086401"
    assert document["not_before"] == str(1_700_000_001 - 300)
    assert document["ext_expires_in"] == "86399"


def test_token_claims_state_that_it_is_emulated() -> None:
    document = ManagedIdentity().token(FIRST, "https://vault.azure.net", NOW, bypass_cache=False)
    assert len(document["access_token"].split(".")) == 3
    assert "emulator" in claims(document)["note"]
    assert claims(document)["aud"] == "https://vault.azure.net"
    assert claims(document)["appid"] == FIRST.client_id


def test_token_of_the_system_belongs_to_its_machine() -> None:
    identity = ManagedIdentity(machine_id="/subscriptions/s/vm")
    documents = [identity.token(one, "r", NOW, bypass_cache=False) for one in (SYSTEM_ASSIGNED, FIRST)]
    assert [claims(document)["xms_mirid"] for document in documents] == ["/subscriptions/s/vm", FIRST.resource_id]


def test_token_has_the_tenant_of_its_identity() -> None:
    other = dataclasses.replace(SECOND, tenant_id="other")
    identity = ManagedIdentity((FIRST, other), tenant_id="own", keys=Keys(url="http://h"))
    read = [claims(identity.token(one, "r", NOW, bypass_cache=False)) for one in (FIRST, other)]
    assert [(each["tid"], each["iss"]) for each in read] == [("own", "http://h/own/"), ("other", "http://h/other/")]
    assert identity.tenants == {"own", "other"}


def test_token_says_that_it_is_unsigned_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    document = ManagedIdentity().token(FIRST, "r", NOW, bypass_cache=False)
    head, _, signature = document["access_token"].split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"typ": "JWT", "alg": "none"}
    assert base64.urlsafe_b64decode(signature + "==") == b"unsigned, from an emulator"
    assert claims(document)["oid"] == FIRST.object_id


def test_token_is_repeated_until_near_its_expiry() -> None:
    identity = ManagedIdentity(token_life=86_400)
    first = identity.token(FIRST, "r", NOW, bypass_cache=False)
    later = identity.token(FIRST, "r", NOW + 86_000, bypass_cache=False)
    assert later["access_token"] == first["access_token"]
    assert later["expires_in"] == "400"
    assert later["expires_on"] == first["expires_on"]
    renewed = identity.token(FIRST, "r", NOW + 86_101, bypass_cache=False)
    assert renewed["access_token"] != first["access_token"]
    assert renewed["expires_in"] == "86400"


def test_short_token_is_repeated_for_nine_tenths_of_its_life() -> None:
    identity = ManagedIdentity(token_life=10)
    first = identity.token(FIRST, "r", 100, bypass_cache=False)
    assert identity.token(FIRST, "r", 108.9, bypass_cache=False)["access_token"] == first["access_token"]
    assert identity.token(FIRST, "r", 109.0, bypass_cache=False)["access_token"] != first["access_token"]


def test_identities_and_resources_never_share_a_token() -> None:
    identity = ManagedIdentity()
    tokens = {
        identity.token(one, resource, NOW, bypass_cache=False)["access_token"]
        for one in (SYSTEM_ASSIGNED, FIRST, SECOND)
        for resource in ("a", "b")
    }
    assert len(tokens) == 6


def test_bypass_cache_replaces_the_token() -> None:
    identity = ManagedIdentity()
    first = identity.token(FIRST, "r", NOW, bypass_cache=False)
    second = identity.token(FIRST, "r", NOW, bypass_cache=True)
    third = identity.token(FIRST, "r", NOW, bypass_cache=False)
    assert first["access_token"] != second["access_token"] == third["access_token"]


def test_remembered_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TOKENS", 2)
    identity = ManagedIdentity()
    first = identity.token(FIRST, "0", NOW, bypass_cache=False)
    for resource in ("1", "2"):
        identity.token(FIRST, resource, NOW, bypass_cache=False)
    assert identity.token(FIRST, "0", NOW, bypass_cache=False)["access_token"] != first["access_token"]
