"""The query of a request for a token: read in one way, or not at all."""

from __future__ import annotations

import pytest

from imdsproxy.access.query import Query, read_query
from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target
from tests.targets import target_of

TOKEN = "/metadata/identity/oauth2/token"  # a path


@pytest.mark.parametrize(
    ("query", "identity", "audience"),
    [
        ("resource=https://vault.azure.net", ("system-assigned", ""), "https://vault.azure.net"),
        ("resource=https%3A%2F%2Fvault.azure.net%2f", ("system-assigned", ""), "https://vault.azure.net"),
        ("resource=https://Vault.Azure.net//", ("system-assigned", ""), "https://vault.azure.net"),
        ("api-version=2018-02-01&&client_id=AB-1", ("client_id", "ab-1"), None),
        ("client%5Fid=AB-1", ("client_id", "ab-1"), None),
        ("object_id=ab", ("object_id", "ab"), None),
        ("msi_res_id=/subscriptions/S/g(1)/", ("resource_id", "/subscriptions/s/g(1)"), None),
        ("mi_res_id=%2Fsubscriptions%2FS", ("resource_id", "/subscriptions/s"), None),
        ("bypass_cache=true&resource=a", ("system-assigned", ""), "a"),
    ],
)
def test_read_query_finds_identity_and_audience(query: str, identity: tuple[str, str], audience: str | None) -> None:
    read = read_query("GET", target_of(f"{TOKEN}?{query}"))
    assert read.unclear is None
    assert (read.identity, read.audience) == (identity, audience)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("Client_Id=ab", "plain lower case"),
        ("RESOURCE=a", "plain lower case"),
        ("resource=a&client.id=b", "plain lower case"),
        ("resource=a&client+id=b", "plain lower case"),
        ("resource=a&client%00", "plain lower case"),
        ("resource=a;client_id=b", "two ways"),
        ("api-version=1;client_id=b&resource=a", "two ways"),
        ("api-version=1%26client_id%3Db&resource=a", "two ways"),
        ("resource=a,b", "two ways"),
        ("resource=a+b", "two ways"),
        ("resource=a%2520", "two ways"),
        ("resource=a?client_id=b", "two ways"),
        ("resource=a%23b", "two ways"),
        ("resource=%C3%A4", "two ways"),
        ("resource=", "empty"),
        ("client_id&resource=a", "empty"),
        ("client_id=a&object_id=b", "more than one"),
        ("msi_res_id=a&mi_res_id=b", "more than one"),
        ("resource=a&principal_id=b", "documented"),
    ],
)
def test_read_query_that_can_be_read_in_two_ways_is_unclear(query: str, reason: str) -> None:
    read = read_target(f"{TOKEN}?{query}".encode("ascii"))
    if not isinstance(read, Target):
        return  # refused before any rule is asked
    assert reason in (read_query("GET", read).unclear or "")


def test_read_query_below_identity_has_documented_parameters_only() -> None:
    assert read_query("GET", target_of("/metadata/identity/other?a=b")).unclear is not None
    assert read_query("GET", target_of("/metadata/instance?a=b")) == Query(None, parameters=(("a", "b"),))


def test_read_query_of_a_post_is_unclear() -> None:
    assert "body" in (read_query("POST", target_of(TOKEN)).unclear or "")
