"""The log of a whole proxy: each trouble once when it begins, and once when it ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests import virtual
from tests.scripted import Imds, Stage, ok, token
from tests.targets import INSTANCE, TOKEN

IDENTITY = "e0000000-0000-4000-8000-00000000c111"


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (record.levelname, record.getMessage().partition(";")[0], vars(record)["fields"]) for record in caplog.records
    ]


def test_two_hundred_refused_requests_are_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(), max_wait=0.5)
        answers = await asyncio.gather(*[stage.start(f"{INSTANCE}&n={n}") for n in range(205)])
        assert sum(answer.response.status == 429 for answer in answers) == 200
        await asyncio.sleep(60)

    with caplog.at_level(logging.INFO):
        virtual.run(scenario())
    begin, end = lines(caplog)
    assert begin[:2] == ("WARNING", "budget exhausted")
    assert end[:2] == ("INFO", "budget no longer exhausted")
    assert end[2]["refused"] == 200


def test_renewal_that_fails_for_hours_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    refusal = ok('{"error":"forbidden","error_description":"Identity not assigned"}', 403)
    target = f"{TOKEN}&client_id={IDENTITY}"

    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: refusal if 3000 < stage.now - began < 30_000 else token(86400), raw=True))
        began = stage.now
        while stage.now - began < 36_000:
            await stage.get(target)
            await asyncio.sleep(60)

    with caplog.at_level(logging.INFO):
        virtual.run(scenario())
    begin, end = lines(caplog)
    assert begin[:2] == ("WARNING", "access token cannot be renewed")
    assert begin[2]["because"] == "IMDS answered with status 403: forbidden: Identity not assigned"
    assert 82_000 < begin[2]["expires_in"] < 83_400
    assert end[:2] == ("INFO", "access token is renewed again")
    assert IDENTITY not in str(begin) + str(end)


def test_cache_without_room_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: ok("x" * 20_000)), cache_max_bytes=1 << 17)
        for number in range(20):
            await stage.get(f"{INSTANCE}&n={number}")
        await asyncio.sleep(100)

    with caplog.at_level(logging.INFO):
        virtual.run(scenario())
    assert [line[:2] for line in lines(caplog)] == [("WARNING", "cache full"), ("INFO", "no more entries are evicted")]
