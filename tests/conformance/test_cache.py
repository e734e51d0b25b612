"""What the cache does where cache-tests has a rule, in virtual time: `cache_rules` says which test is for which."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import Headers, Refusal, Response
from imdsproxy.protocol.request_parser import read
from tests import virtual
from tests.conformance.cache_rules import (
    AGES,
    DIRECTIVES,
    FIELDS,
    HEURISTIC_NOT,
    HEURISTIC_REUSED,
    NEVER,
    REMEMBERED,
    REUSED,
    VARIES,
)
from tests.scripted import DOWN, Imds, Stage, in_turn, ok, status
from tests.targets import EVENTS, INSTANCE

pytestmark = pytest.mark.any_python

FRESH = 60
"""Seconds for which the instance document is fresh, and then for as long again refreshed in the background."""
DATE = b"Wed, 01 Jan 2020 00:00:00 GMT"
PAST, FUTURE = b"Thu, 01 Jan 1970 00:00:00 GMT", b"Fri, 01 Jan 2038 01:01:01 GMT"
STALE_FOR = 3600


def fields(name: str, *values: bytes) -> Headers:
    return tuple((name.encode(), value) for value in values)


def hit(headers: Headers = (), *, after: float = 0.0, asked: Headers = (), code: int = 200) -> bool:
    """Return whether a second request, `after` seconds after the first, is answered without IMDS."""

    async def scenario() -> bool:
        stage = Stage(Imds(lambda _sent: ok(status=code, headers=headers)), retry_max=0, retry_statuses=frozenset())
        await stage.get()
        await asyncio.sleep(after)
        before = stage.imds.count
        await stage.get(headers=asked)
        return stage.imds.count == before

    return virtual.run(scenario())


@pytest.mark.parametrize("name", AGES)
def test_age_of_an_answer_counts(name: str) -> None:
    _, values, is_old = AGES[name]
    assert hit(fields("age", *values)) is not is_old
    assert hit(fields("age", b"%d" % (FRESH - 1)))
    assert not hit(fields("age", b"%d" % (3 * FRESH)))


SAYINGS = [
    (),
    *(fields("cache-control", value) for value in (b"max-age=1", b"max-age=0", b"max-age=-5", b"s-maxage=1")),
    *(fields("cache-control", value) for value in (b"private", b"no-store", b"No-Store", b"no-store, max-age=0")),
    *(fields("cache-control", value) for value in (b"no-cache", b'no-cache="a, b"', b"must-revalidate, max-age=1")),
    *(fields("cache-control", value) for value in (b"immutable, max-age=99999999999", b"no-store, must-understand")),
    *(fields("cache-control", value) for value in (b'max-age="3600"', b"max-age=a100", b"max-age =1", b"max-age= 1")),
    fields("cache-control", b"max-age=1", b"max-age=3600"),
    *(fields("cdn-cache-control", value) for value in (b"max-age=0", b"no-store", b"private", b"max-age=99999999999")),
    *(fields("expires", value) for value in (PAST, FUTURE, b"0", b"Friday, 01-Jan-38 01:01:01 GMT")),
    *(fields("pragma", value) for value in (b"no-cache", b"unknown")),
    *(fields("last-modified", value) for value in (PAST, DATE)),
    fields("date", PAST),
    fields("content-disposition", b"attachment"),
]


@pytest.mark.parametrize("said", SAYINGS, ids=repr)
def test_policy_decides_whatever_the_answer_says(said: Headers) -> None:
    assert hit(said, after=FRESH - 1)
    assert not hit(said, after=2 * FRESH + 1)


@pytest.mark.parametrize(
    "said",
    [
        (),
        *(fields("cache-control", b"max-age=2, " + value) for value in (b"must-revalidate", b"proxy-revalidate")),
        *(fields("cache-control", b"max-age=2, " + value) for value in (b"no-cache", b"s-maxage=2")),
        *(fields("cache-control", b"stale-while-revalidate=" + value) for value in (b"0", b"999999")),
        *(fields("cache-control", b"stale-if-error=" + value) for value in (b"0", b"999999")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("failure", [DOWN, status(503)], ids=["closed", "503"])
def test_policy_decides_how_long_an_answer_is_served_stale(said: Headers, failure: Response) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(ok("old", headers=said), failure)), retry_max=0)
        await stage.get()
        await asyncio.sleep(2 * FRESH + 1)
        served = await stage.get()
        assert (served.response.status, served.response.body) == (200, b"old")
        assert served.response.header(b"warning") is None
        assert b"detail=stale-if-error" in served.cache_status()
        await asyncio.sleep(STALE_FOR)
        assert (await stage.get()).response.status in {502, 503}

    virtual.run(scenario())


@pytest.mark.parametrize("name", VARIES)
def test_answer_that_varies_by_a_field_of_clients_is_not_stored(name: str) -> None:
    _, values = VARIES[name]
    for asked in ((), fields("foo", b"1"), fields("foo", b"2")):
        assert not hit(fields("vary", *values), asked=asked)
    # The proxy sends these itself, the same ones for every client.
    assert hit(fields("vary", b"Accept-Encoding, accept", b"User-Agent, Accept-Language"))
    assert hit(fields("vary", b", "))


@pytest.mark.parametrize("name", DIRECTIVES)
def test_directive_of_a_request(name: str) -> None:
    _, value, renews = DIRECTIVES[name]
    said = (*fields("age", b"5"), *fields("last-modified", DATE), *fields("etag", b'"a"'))
    for written in (value, b"x, " + value, value.upper()):
        assert hit(said, asked=fields("cache-control", written)) is not renews
    assert hit(asked=fields("pragma", b"no-cache"))
    assert hit(asked=fields("pragma", b"unknown"))
    assert not hit(after=2 * FRESH + 1, asked=fields("cache-control", b"only-if-cached"))
    assert not hit(after=2 * FRESH + 1, asked=fields("cache-control", value))


@pytest.mark.parametrize(
    "asked",
    [
        *(
            fields("if-none-match", value)
            for value in (b'"a"', b'W/"a"', b'w/"a"', b"a", b"*", b'"x", "a", "y"', b'"\xe4"')
        ),
        *(fields("if-modified-since", value) for value in (DATE, FUTURE, b"Friday, 01-Jan-38 01:01:01 GMT")),
        (*fields("if-none-match", b'"b"'), *fields("if-modified-since", FUTURE)),
        (*fields("if-match", b'"b"'), *fields("if-unmodified-since", PAST)),
    ],
    ids=repr,
)
def test_condition_of_a_client_gets_the_whole_answer(asked: Headers) -> None:
    async def scenario() -> None:
        said = (*fields("etag", b'"a"'), *fields("last-modified", DATE))
        stage = Stage(Imds(lambda _sent: ok("whole", headers=said)))
        for pause in (0, FRESH - 1, 2 * FRESH + 1):  # a miss, a hit, a stale answer
            await asyncio.sleep(pause)
            served = await stage.get(headers=asked)
            assert (served.response.status, served.response.body) == (200, b"whole")
            assert served.response.header(b"etag") == b'"a"'
        assert stage.imds.count == 2
        sent = {name for one in stage.imds.sent for name in one.headers}
        assert not {name for name in sent if name.startswith(b"if-")}

    virtual.run(scenario())


@pytest.mark.parametrize("code", sorted({*REUSED, *NEVER, *REMEMBERED, *HEURISTIC_REUSED, *HEURISTIC_NOT}))
def test_status_is_stored_or_not(code: int) -> None:
    for said in ((), fields("cache-control", b"public, max-age=3600"), fields("last-modified", PAST)):
        assert hit(said, code=code) is (code in {*REUSED, *REMEMBERED})
    assert not hit(fields("cache-control", b"no-store, must-understand"), code=599)
    assert not hit(fields("cache-control", b"max-age=1"), code=code, after=2 * FRESH + 1)


@pytest.mark.parametrize("outcome", FIELDS)
def test_field_of_an_answer_is_kept_or_dropped(outcome: str) -> None:
    from imdsproxy.upstream.headers import to_client  # noqa: PLC0415  # this test alone reads fields as they come

    for name in FIELDS[outcome]:
        lower = name.lower().encode()
        on_the_wire = [(name.encode(), b"v"), (b"Connection", b"a, b"), (b"A", b"1"), (b"b", b"2"), (b"C", b"3")]
        kept = to_client([*on_the_wire, (b"Content-Length", b"99")])
        names = {field for field, _ in kept}
        assert names == {b"c", *(() if outcome == "dropped" else (lower,))}
        assert hit(kept) is (outcome != "prevents storing")


def test_query_is_part_of_the_key() -> None:
    async def scenario() -> None:
        stage = Stage()
        for target in (INSTANCE, f"{INSTANCE}&x=1", f"{INSTANCE}&x=2"):
            for _ in range(2):
                await stage.get(target)
        assert stage.imds.count == 3

    virtual.run(scenario())


def test_hit_has_an_age_and_the_date_of_its_answer() -> None:
    said = (*fields("date", DATE), *fields("expires", FUTURE), *fields("cdn-cache-control", b"max-age=1"))

    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: ok(headers=said), latency=4.0))
        await stage.get()
        for age in (4, 14, 59):  # the time that the answer took is part of it
            await asyncio.sleep(age - (stage.now - stage.imds.sent[0].at))
            served = await stage.get()
            assert dict(served.headers())[b"age"] == b"%d" % age
            for name, value in said:
                assert served.response.header(name) == value
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_part_is_neither_requested_nor_stored() -> None:
    assert not hit(fields("content-range", b"bytes 0-1/9"), code=206)

    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: ok("whole")))
        for _ in range(2):
            for value in (b"bytes=0-1", b"bytes=1-", b"bytes=-1"):
                served = await stage.get(headers=(*fields("range", value), *fields("if-range", DATE)))
                assert (served.response.status, served.response.body) == (200, b"whole")
        assert stage.imds.count == 1
        assert not {b"range", b"if-range"} & stage.imds.sent[0].headers.keys()

    virtual.run(scenario())


def test_credentials_and_cookies_of_a_client_reach_no_shared_fetch() -> None:
    asked = (*fields("authorization", b"Basic x"), *fields("cookie", b"a=b"))

    async def scenario() -> None:
        stage = Stage()
        for headers in (asked, (), asked):
            await stage.get(headers=headers)
        assert stage.imds.count == 1
        assert not {b"authorization", b"cookie"} & stage.imds.sent[0].headers.keys()

    virtual.run(scenario())


@pytest.mark.parametrize("code", [200, 500])
def test_acknowledgement_drops_the_entry(code: int) -> None:
    async def scenario() -> None:
        imds = Imds()
        imds.answer = lambda sent: ok(status=code) if sent.method == "POST" else ok(str(imds.count))
        stage = Stage(imds, ttl={"/metadata/scheduledevents": 600.0})
        assert (await stage.get(EVENTS)).response.body == b"1"
        assert (await stage.get(EVENTS, method="POST", body=b"{}")).response.status == code
        assert (await stage.get(EVENTS)).response.body == b"3"
        assert (await stage.get(EVENTS)).response.body == b"3"

    virtual.run(scenario())


@pytest.mark.parametrize("method", ["PUT", "DELETE", "M-SEARCH", "PATCH", "POST"])
def test_other_methods_store_and_drop_nothing(method: str) -> None:
    refusal = read(method, INSTANCE.encode(), [(b"host", b"localhost")], AcceptedHosts())
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.headers) == (405, ((b"allow", b"GET"),))


def test_head_of_a_document_is_refused() -> None:
    refusal = read("HEAD", INSTANCE.encode(), [(b"host", b"localhost")], AcceptedHosts())
    assert isinstance(refusal, Refusal)
    assert refusal.status == 405
