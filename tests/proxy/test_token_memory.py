"""The memory that holds an access token is released at the token's end, and no client is shown it before."""

from __future__ import annotations

import asyncio
import json
import secrets

import pytest

from imdsproxy.protocol.messages import Response
from imdsproxy.server.known_heads import KnownHeads
from tests import virtual
from tests.live_objects import holders, shown_by
from tests.scripted import Imds, Stage, ok
from tests.targets import TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]

LIFE = 3600
MARGIN = 300
"""Seconds before its end from which a token is not kept."""
HEAD = b"GET %b HTTP/1.1\r\nhost: 127.0.0.1\r\nmetadata: true\r\n\r\n" % TOKEN.encode()


BEFORE_THE_TESTS: list[str] = []
"""Exists before the first test, like the tables of a module."""


def issued(mark: str, life: int = LIFE) -> Response:
    return ok(json.dumps({"access_token": mark, "expires_in": str(life), "token_type": "Bearer"}))


def issuer(*marks: str) -> Imds:
    """Return an IMDS that issues these tokens in turn. It makes each answer when it is asked."""
    left = list(marks)
    return Imds(lambda _sent: issued(left.pop(0) if len(left) > 1 else left[0]))


async def served_in_every_way(stage: Stage) -> KnownHeads:
    """Serve a token as a miss, as a hit and by a known head; the rendered hit stays with its entry."""
    heads = KnownHeads(stage.proxy, 1 << 20)
    await stage.get(TOKEN)
    await stage.many(3, TOKEN)
    request, unix = stage.request(TOKEN), False
    assert stage.proxy.fresh_hit(request, stage.now) is not None
    for _ in range(2):
        heads.remember(HEAD, request.target.key, last=False, unix=unix)
    assert heads.find(HEAD, stage.now, unix) is not None
    return heads


def test_holder_from_before_the_tests_is_found() -> None:
    mark = secrets.token_hex(8)
    BEFORE_THE_TESTS.append(f"token {mark}")
    found = holders(mark)
    BEFORE_THE_TESTS.clear()
    assert any(one is BEFORE_THE_TESTS for one in found)


def test_token_leaves_memory_at_its_end_without_a_request() -> None:
    mark = secrets.token_hex(12)

    async def go() -> None:
        stage = Stage(issuer(mark))
        heads = await served_in_every_way(stage)
        await asyncio.sleep(LIFE - MARGIN - 10)
        assert holders(mark), "it is served until then"
        await asyncio.sleep(12)
        assert holders(mark) == []
        assert stage.proxy.store.bytes == 0
        del heads

    virtual.run(go())


def test_error_that_quotes_a_token_leaves_memory_as_well() -> None:
    mark = secrets.token_hex(12)

    async def go() -> None:
        stage = Stage(Imds(lambda _sent: ok(json.dumps({"error": "invalid_request", "x": mark}), 400)))
        assert (await stage.get(TOKEN)).response.status == 400
        assert holders(mark), "400 is stored for five seconds"
        await asyncio.sleep(7)
        assert holders(mark) == []

    virtual.run(go())


def test_renewed_token_leaves_memory_at_once() -> None:
    first, second = secrets.token_hex(12), secrets.token_hex(12)

    async def go() -> None:
        stage = Stage(issuer(first, second))
        heads = await served_in_every_way(stage)
        await asyncio.sleep(LIFE / 2 + 1)
        await stage.get(TOKEN)  # starts the renewal
        await asyncio.sleep(1)
        await stage.get(TOKEN)
        assert holders(second)
        assert holders(first) == []
        del heads

    virtual.run(go())


@pytest.mark.parametrize("path", [None, "/metadata/identity"])
def test_purged_token_leaves_memory_at_once(path: str | None) -> None:
    mark = secrets.token_hex(12)

    async def go() -> None:
        stage = Stage(issuer(mark))
        heads = await served_in_every_way(stage)
        await asyncio.sleep(1)  # the loop has let go of what the test itself waited for
        assert holders(mark)
        assert stage.proxy.drop(path) == 1
        assert holders(mark) == []
        del heads

    virtual.run(go())


def test_each_token_leaves_at_its_own_end() -> None:
    marks = {f"{TOKEN}&client_id={life}": (secrets.token_hex(12), life) for life in (4000, 900)}

    async def go() -> None:
        stage = Stage(Imds(lambda sent: issued(*marks[sent.target])))
        for target in marks:
            await stage.get(target)
        (late, _), (soon, _) = marks.values()
        await asyncio.sleep(900 - MARGIN + 2)
        assert holders(soon) == []
        assert holders(late)
        await asyncio.sleep(4000 - 900)
        assert holders(late) == []

    virtual.run(go())


def test_no_object_of_the_proxy_shows_a_token_that_it_holds() -> None:
    mark = secrets.token_hex(12)

    async def go() -> None:
        stage = Stage(issuer(mark), derive=True)
        heads = await served_in_every_way(stage)
        record = await stage.get(TOKEN)
        waiting = stage.start(f"{TOKEN}&bypass_cache=true")
        await waiting
        assert holders(mark)
        assert shown_by("imdsproxy", mark) == []
        assert shown_by("_asyncio", mark) == [], "a finished task shows its result"
        del heads, record

    virtual.run(go())
