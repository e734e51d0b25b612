"""Access rules in front of the cache, collapsed fetches and every other way to an answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome, RequestRecord
from tests import virtual
from tests.scripted import Imds, Stage
from tests.targets import INSTANCE, TOKEN, VERSIONS

LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
WEB, OTHER, NAMELESS = Peer(user=33), Peer(user=34), Peer(address="127.0.0.1")
FILE = """\
default = "deny"
[[rule]]
name = "web"
user = 33
allow = ["/metadata/instance", "/metadata/identity", "/metadata/attested", "/metadata/scheduledevents"]
[[rule]]
name = "leaf"
user = 34
allow = "/metadata/instance/compute/vmId"
[[rule]]
name = "no-versions"
address = "127.0.0.1"
deny = "/metadata/versions"
"""
EVERYTHING = (
    INSTANCE,
    TOKEN,
    f"{TOKEN}&bypass_cache=true",
    "/metadata/attested/document?api-version=2020-09-01&nonce=1234567890",
    "/metadata/scheduledevents?api-version=2020-07-01",
)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "access.toml"
    path.write_text(FILE, encoding="ascii")
    return {"access_file": str(path)}


def refused(record: RequestRecord, rule: str = "default") -> bool:
    return (record.response.status, record.outcome, record.detail) == (403, Outcome.REFUSED, f"access-{rule}")


def test_refused_client_costs_imds_nothing_and_gets_no_stored_answer(settings: dict[str, Any]) -> None:
    async def scenario() -> None:
        stage = Stage(**settings)
        for target in EVERYTHING:
            for client in (OTHER, NAMELESS):
                assert refused(await stage.get(target, client=client)), target
        assert stage.imds.count == 0
        for target in EVERYTHING:
            assert (await stage.get(target, client=WEB)).response.status == 200
        sent = stage.imds.count
        for target in EVERYTHING:
            for client in (OTHER, NAMELESS):
                assert refused(await stage.get(target, client=client)), target
                no_cache = await stage.get(target, client=client, headers=((b"cache-control", b"no-cache"),))
                assert refused(no_cache), target
        assert stage.imds.count == sent

    virtual.run(scenario())


def test_refused_client_does_not_join_a_fetch_under_way(settings: dict[str, Any]) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=1.0), **settings)
        leader = stage.start(INSTANCE, client=WEB)
        await asyncio.sleep(0.1)
        joined = stage.start(INSTANCE, client=WEB)
        assert refused(await stage.get(INSTANCE, client=OTHER))
        assert stage.now < 1001, "it did not wait"
        assert (await leader).response.status == (await joined).response.status == 200
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_grant_of_a_leaf_is_none_of_the_whole_even_where_parts_are_derived(settings: dict[str, Any]) -> None:
    async def scenario() -> None:
        stage = Stage(derive=True, **settings)
        assert (await stage.get(INSTANCE, client=WEB)).response.status == 200
        assert (await stage.get(LEAF, client=OTHER)).response.status == 200
        for target in (INSTANCE, "/metadata/instance/compute?api-version=2021-02-01"):
            assert refused(await stage.get(target, client=OTHER))

    virtual.run(scenario())


def test_refusal_names_its_rule(settings: dict[str, Any]) -> None:
    async def scenario() -> None:
        stage = Stage(**settings)
        record = await stage.get(VERSIONS, client=NAMELESS)
        assert refused(record, "no-versions")
        assert b'\\"no-versions\\"' in record.response.body
        assert record.cache_status() == b"imdsproxy; detail=access-no-versions"
        text = stage.parts.metrics.text().decode()
        assert 'imdsproxy_access_refused_total{mode="enforce",rule="no-versions"} 1.0' in text

    virtual.run(scenario())


def test_audit_serves_and_counts(settings: dict[str, Any]) -> None:
    async def scenario() -> None:
        stage = Stage(access_mode="audit", **settings)
        for _ in range(2):
            assert (await stage.get(INSTANCE, client=OTHER)).response.status == 200
        assert stage.imds.count == 1
        text = stage.parts.metrics.text().decode()
        assert 'imdsproxy_access_refused_total{mode="audit",rule="default"} 2.0' in text

    virtual.run(scenario())


def test_fast_path_answers_only_clients_that_may_have_the_answer(settings: dict[str, Any]) -> None:
    from imdsproxy.access.subject import subject_of  # noqa: PLC0415  # for this test only

    async def scenario() -> None:
        stage = Stage(**settings)
        await stage.get(INSTANCE, client=WEB)
        request, now = stage.request(INSTANCE), stage.now
        assert stage.proxy.fresh_hit(request, now, subject_of(WEB)) is not None
        for client in (OTHER, NAMELESS):
            assert stage.proxy.fresh_hit(request, now, subject_of(client)) is None
        assert stage.proxy.fresh_hit(request, now) is None

    virtual.run(scenario())


def test_own_requests_of_the_proxy_need_no_grant(settings: dict[str, Any]) -> None:
    async def scenario() -> None:
        stage = Stage(**settings)
        request = stage.request(VERSIONS)
        answer = stage.proxy.perform(request, stage.proxy.policy.decide(request))
        assert not isinstance(answer, RequestRecord)
        assert (await answer).response.status == 200

    virtual.run(scenario())
