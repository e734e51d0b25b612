"""Derived entries: parts of a stored instance document, answered without IMDS within their own lifetimes."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from imdsproxy.protocol.messages import Failure, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, SLOW, Imds, Sent, Stage, in_turn, ok, status
from tests.targets import INSTANCE

VERSION = "api-version=2021-02-01"
VM_ID = f"/metadata/instance/compute/vmId?{VERSION}&format=text"
TAGS = f"/metadata/instance/compute/tags?{VERSION}&format=text"
ADDRESS = f"/metadata/instance/network/interface/0?{VERSION}"


def document(number: int = 1) -> Response:
    compute = {"vmId": f"vm-{number}", "tags": f"tags-{number}", "count": 3}
    whole = {"compute": compute, "network": {"interface": [{"mac": f"mac-{number}"}]}}
    return ok(json.dumps(whole, separators=(",", ":")))


def test_parts_of_a_stored_whole_need_no_request() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: document()), derive=True)
        await stage.get()
        await asyncio.sleep(10)
        part = await stage.get(VM_ID)
        assert part.response.body == b"vm-1"
        assert part.response.header(b"content-type") == b"text/plain; charset=utf-8"
        assert part.response.header(b"server") == b"IMDS/150.870.65.1854"
        assert (part.outcome, part.age, part.ttl) == (Outcome.HIT, 10, 290)
        assert part.cache_status() == b"imdsproxy; hit; ttl=290; detail=derived"
        assert (await stage.get(ADDRESS)).response.body == b'{"mac":"mac-1"}'
        assert (await stage.get(TAGS)).response.body == b"tags-1"
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_every_part_is_requested_without_derive() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: document()))
        await stage.get()
        await stage.get(VM_ID)
        assert stage.imds.count == 2

    virtual.run(scenario())


def test_uncertain_part_is_requested() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: document()), derive=True)
        await stage.get()
        odd = ["compute/count?{}&format=text", "compute/missing?{}&format=text", "compute/vmId?{}&format=text&x=1"]
        for number, path in enumerate(odd, 2):
            served = await stage.get("/metadata/instance/" + path.format(VERSION))
            assert (served.outcome, stage.imds.count) == (Outcome.MISS, number)

    virtual.run(scenario())


def test_parts_are_derived_within_one_api_version() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: document()), derive=True)
        await stage.get()
        assert (await stage.get(VM_ID.replace("2021-02-01", "2021-12-13"))).outcome is Outcome.MISS

    virtual.run(scenario())


def test_part_has_its_own_lifetime_from_the_wholes_request() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(document(1), document(2))), derive=True)
        await stage.get()
        await asyncio.sleep(29)
        assert (await stage.get(ADDRESS)).outcome is Outcome.HIT, "30 s, though the whole is fresh for 60"
        await asyncio.sleep(90)
        assert (await stage.get(VM_ID)).outcome is Outcome.HIT, "300 s, though the whole is fresh for 60"
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_refresh_of_the_whole_refreshes_its_parts() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(document(1), document(2)), latency=0.1), derive=True)
        await stage.get()
        await stage.get(ADDRESS)
        await asyncio.sleep(40)
        stale = await stage.get(ADDRESS)
        assert (stale.response.body, stale.outcome) == (b'{"mac":"mac-1"}', Outcome.STALE)
        assert (await stage.get(ADDRESS)).outcome is Outcome.STALE
        await asyncio.sleep(1)
        assert [sent.target for sent in stage.imds.sent] == [INSTANCE, INSTANCE]
        renewed = await stage.get(ADDRESS)
        assert (renewed.response.body, renewed.outcome, renewed.age) == (b'{"mac":"mac-2"}', Outcome.HIT, 1)
        assert (await stage.get(VM_ID)).response.body == b"vm-2"
        assert (await stage.get()).outcome is Outcome.HIT
        assert stage.imds.count == 2

    virtual.run(scenario())


def test_part_is_cut_from_the_newer_of_two_wholes() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(document(1), ok('{"vmId":"vm-2","tags":"tags-2"}'), document(3))), derive=True)
        compute = f"/metadata/instance/compute?{VERSION}"
        await stage.get()
        await asyncio.sleep(1)
        await stage.get(compute)  # of the whole, as it is certain
        assert stage.imds.count == 1
        await stage.get(compute, headers=((b"cache-control", b"no-cache"),))
        assert (await stage.get(VM_ID)).response.body == b"vm-2"
        await asyncio.sleep(1)
        await stage.get(headers=((b"cache-control", b"no-cache"),))
        assert (await stage.get(TAGS)).response.body == b"tags-3"

    virtual.run(scenario())


def test_own_newer_entry_is_preferred() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(document(1), ok("own"), document(3))), derive=True)
        await stage.get()
        await asyncio.sleep(1)
        own = await stage.get(TAGS, headers=((b"cache-control", b"no-cache"),))
        assert own.response.body == b"own"
        assert (await stage.get(TAGS)).response.body == b"own"
        await asyncio.sleep(61)
        assert (await stage.get(TAGS)).response.body == b"own", "stale, and newer than the whole"
        await asyncio.sleep(0.1)
        assert stage.imds.sent[-1].target == TAGS, "and renewed by itself"

    virtual.run(scenario())


def test_part_is_served_within_its_stale_bound_while_imds_fails() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(document(1), DOWN)), derive=True)
        await stage.get()
        await asyncio.sleep(3000)
        served = await stage.get(VM_ID)
        assert (served.response.body, served.detail) == (b"vm-1", "stale-if-error")
        await asyncio.sleep(1000)
        assert (await stage.get(VM_ID)).response.status == 502, "3,600 s after its 300 at the latest"

    virtual.run(scenario())


def test_part_is_fetched_if_its_whole_was_dropped() -> None:
    async def scenario() -> None:
        def answer(sent: Sent) -> Response | Failure:
            return document() if sent.target == INSTANCE else ok("own")

        stage = Stage(Imds(answer), derive=True)
        await stage.get()
        stage.proxy.drop()
        assert (await stage.get(VM_ID)).response.body == b"own"

    virtual.run(scenario())


def test_refused_whole_has_no_parts() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(404), ok("own"))), derive=True)
        await stage.get()
        assert (await stage.get(VM_ID)).response.body == b"own"

    virtual.run(scenario())


def test_denied_part_stays_denied() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: document()), derive=True, deny=("/metadata/instance/compute",))
        await stage.get()
        assert (await stage.get(VM_ID)).response.status == 403
        assert (await stage.get(ADDRESS)).response.status == 200

    virtual.run(scenario())


def test_part_with_ttl_0_is_requested() -> None:
    async def scenario() -> None:
        closed = (("/metadata/instance/compute/tags", 0.0),)
        stage = Stage(Imds(lambda _sent: document()), derive=True, ttl=closed)
        await stage.get()
        assert (await stage.get(TAGS)).outcome is Outcome.BYPASS

    virtual.run(scenario())


@pytest.mark.parametrize("trouble", [status(500), status(403), DOWN, SLOW])
def test_part_is_fetched_if_its_whole_cannot_be_refreshed(
    trouble: Response | Failure,
) -> None:
    async def scenario() -> None:
        numbers = itertools.count(2)

        def answer(sent: Sent) -> Response | Failure:
            if sent.target == TAGS:
                return ok(f"own-{next(numbers)}")
            return document() if stage.imds.count == 1 else trouble

        stage = Stage(Imds(answer), derive=True, retry_max=0)
        await stage.get()
        oldest = 0
        for _ in range(390):
            served = await stage.get(TAGS)
            assert served.response.status == 200
            oldest = max(oldest, served.age or 0)
            await asyncio.sleep(10)
        assert oldest <= 120, "twice its freshness"

    virtual.run(scenario())


@pytest.mark.parametrize("negative_ttl", [5.0, 0.0])
@pytest.mark.parametrize("code", [400, 403, 404])
def test_part_that_imds_denied_is_not_cut_from_an_older_whole(code: int, negative_ttl: float) -> None:
    async def scenario() -> None:
        def answer(sent: Sent) -> Response | Failure:
            return document() if sent.target == INSTANCE else status(code)

        stage = Stage(Imds(answer), derive=True, negative_ttl=negative_ttl)
        await stage.get()
        assert (await stage.get(TAGS)).response.status == 200
        await asyncio.sleep(15)
        assert (await stage.get(TAGS, headers=((b"cache-control", b"no-cache"),))).response.status == code
        stage.proxy.store.drop(lambda key: key.startswith("/metadata/instance/"))
        for _ in range(10):
            assert (await stage.get(TAGS)).response.status == code
            await asyncio.sleep(3)
        await stage.get(headers=((b"cache-control", b"no-cache"),))
        assert (await stage.get(TAGS)).response.status == 200, "of a whole that is newer"

    virtual.run(scenario())


def test_age_of_a_whole_counts_for_its_parts() -> None:
    async def scenario() -> None:
        def answer(sent: Sent) -> Response | Failure:
            if sent.target == TAGS:
                return ok("new")
            return Response(200, (*document().headers, (b"age", b"100")), document().body)

        stage = Stage(Imds(answer), derive=True)
        await stage.get(TAGS)
        await asyncio.sleep(1)
        await stage.get()
        await asyncio.sleep(65)
        assert (await stage.get(TAGS)).response.body == b"new"

    virtual.run(scenario())
