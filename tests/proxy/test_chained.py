"""Behind another imdsproxy, such as a node's daemon, which keeps the budget and retries itself."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from imdsproxy.protocol.messages import Failure, FailureKind, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, Imds, Sent, Stage, in_turn, ok, status, token
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

DAEMON = "unix:/run/imdsproxy/imdsproxy.sock"
FROM_PROXY = (b"cache-status", b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=59; stored")


def by_daemon(response: Response, detail: str = "", age: int | None = None) -> Response:
    """Return an answer as a daemon passes it on, or its own if it has a `detail`."""
    said = (b"cache-status", f"imdsproxy; detail={detail}".encode()) if detail else FROM_PROXY
    aged = () if age is None else ((b"age", b"%d" % age),)
    return Response(response.status, (*response.headers, *aged, said), response.body)


def leaf(number: int) -> str:
    return f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01"


def chained(*answers: Response | Failure, **settings: Any) -> Stage:
    return Stage(Imds(in_turn(*(answers or (by_daemon(ok()),)))), **{"upstream": DAEMON, **settings})


# Whose budget


def test_proxy_upstream_gets_requests_at_once_without_permits() -> None:
    async def scenario() -> None:
        stage = chained()
        stage.imds.latency = 0.01
        began = stage.now
        await asyncio.gather(*(stage.get(leaf(number)) for number in range(100)))
        assert stage.now - began == pytest.approx(0.01)
        assert stage.tokens() == 5

    virtual.run(scenario())


def test_proxy_upstream_gets_256_requests_at_once_and_clients_take_turns() -> None:
    async def scenario() -> None:
        stage = chained(max_wait=100.0)
        stage.imds.latency = 1.0
        flood = [stage.start(leaf(number), client="a") for number in range(600)]
        await asyncio.sleep(0.5)
        assert stage.imds.under_way == 256
        single = stage.start(leaf(9_999), client="b")
        await asyncio.sleep(1.0)
        assert stage.imds.under_way == 256
        await single
        assert stage.now == pytest.approx(1_002.0)
        await asyncio.gather(*flood)

    virtual.run(scenario())


@pytest.mark.parametrize(
    ("upstream", "answers", "at_once", "soon"),
    [
        (DAEMON, [by_daemon(ok())], 20, 20),
        (DAEMON, [ok()], 5, 5),  # it only seemed to be one
        # No setting says that it is one, so it is not trusted with more at a time than IMDS is.
        ("http://10.0.0.9:8254", [by_daemon(ok())], 5, 15),
        ("http://10.0.0.9:8254", [ok()], 5, 5),
        # A redirect may bring it to a node's daemon, and may be gone in the next moment.
        ("http://169.254.169.254", [by_daemon(ok())], 5, 5),
        ("http://169.254.169.254", [ok()], 5, 5),
    ],
)
def test_answer_shows_which_proxy_keeps_the_budget(
    upstream: str, answers: list[Response], at_once: int, soon: int
) -> None:
    async def scenario() -> None:
        stage = chained(*answers, upstream=upstream)
        await stage.get(VERSIONS)
        await asyncio.sleep(5)
        stage.imds.latency = 0.5
        asked = [stage.start(leaf(number)) for number in range(20)]
        await asyncio.sleep(0.25)
        assert stage.imds.under_way == at_once
        await asyncio.sleep(1.0)
        assert stage.imds.count - 1 == soon
        await asyncio.gather(*asked)

    virtual.run(scenario())


def test_permits_are_spent_again_once_imds_itself_answers() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok()), ok())
        for number in range(2):
            await stage.get(leaf(number))
        assert not stage.proxy.fetcher.chain.proxied
        asked = [stage.start(leaf(number)) for number in range(10, 20)]
        await asyncio.sleep(1.9)
        assert stage.imds.count == 2, "what was sent without tokens may still be on its way to IMDS"
        await asyncio.sleep(0.5)
        assert stage.imds.count == 2 + 5
        await asyncio.gather(*asked)

    virtual.run(scenario())


# What it answers


@pytest.mark.parametrize("code", [410, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("upstream", [DAEMON, "http://169.254.169.254"])
def test_failure_of_a_proxy_upstream_is_passed_on_without_retries(code: int, upstream: str) -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(status(code, retry_after=7), "budget"), upstream=upstream)
        began = stage.now
        served = await stage.get()
        assert (served.response.status, served.response.header(b"retry-after")) == (code, b"7")
        assert (stage.now, stage.imds.count) == (began, 1)
        await stage.get(TOKEN)
        assert (stage.now, stage.imds.count) == (began, 2), "no other request is delayed by it"

    virtual.run(scenario())


def test_shutdown_answer_of_a_proxy_upstream_is_retried() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(status(503, retry_after=1), "ending"), by_daemon(ok("new")))
        assert (await stage.get()).response.body == b"new"
        assert stage.imds.count == 2

    virtual.run(scenario())


def test_cache_status_members_are_in_order() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok()))
        missed, hit = await stage.get(), await stage.get()
        for served, ours in (
            (missed, b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=60; stored"),
            (hit, b"imdsproxy; hit; ttl=60"),
        ):
            told = [value for name, value in served.headers() if name == b"cache-status"]
            assert told == [FROM_PROXY[1] + b", " + ours]

    virtual.run(scenario())


# How old it is


def test_age_of_a_proxy_upstream_shortens_freshness() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok("old"), age=50), by_daemon(ok("new"), age=0))
        served = await stage.get()
        assert dict(served.headers())[b"age"] == b"50"
        await asyncio.sleep(9)
        served = await stage.get()
        assert (served.outcome, served.age, served.ttl) == (Outcome.HIT, 59, 1)
        await asyncio.sleep(1)
        assert (await stage.get()).outcome is Outcome.STALE
        await asyncio.sleep(0.1)
        assert (await stage.get()).response.body == b"new"

    virtual.run(scenario())


def test_stale_answer_of_a_proxy_upstream_is_stale() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok("old"), age=90), by_daemon(ok("new")))
        assert (await stage.get()).response.body == b"old"
        assert (await stage.get()).outcome is Outcome.STALE
        await asyncio.sleep(0.1)
        assert (await stage.get()).response.body == b"new"

    virtual.run(scenario())


def test_token_life_is_not_aged_twice() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(token(4_000), age=82_400))
        await stage.get(TOKEN)
        await asyncio.sleep(100)
        served = await stage.get(TOKEN)
        assert served.outcome is Outcome.HIT
        assert b'"expires_in":"3900"' in served.response.body

    virtual.run(scenario())


# What it is asked


def test_no_cache_reaches_a_proxy_upstream_and_not_imds() -> None:
    async def scenario(upstream: str, answer: Response) -> list[bytes | None]:
        stage = chained(answer, upstream=upstream)
        await stage.get()
        await stage.get(headers=((b"cache-control", b"no-cache"),))
        return [sent.headers.get(b"cache-control") for sent in stage.imds.sent]

    assert virtual.run(scenario(DAEMON, by_daemon(ok()))) == [None, b"no-cache"]
    assert virtual.run(scenario("http://127.0.0.1:9", ok())) == [None, None]


# Its restart


class Daemon:
    """A daemon that is away for a while."""

    def __init__(self, away: tuple[float, float], how: Failure) -> None:
        self._away = away
        self._how = how

    def __call__(self, sent: Sent) -> Response | Failure:
        begin, end = self._away
        if begin <= sent.at < end:
            return self._how
        return by_daemon(token(86_400) if "token" in sent.target else ok(f"{sent.at:.0f}"))


GONE = Failure(FailureKind.UNREACHABLE, "No such file", sent=False)
RESET = Failure(FailureKind.RESET, "broken off")


@pytest.mark.parametrize("how", [DOWN, GONE, RESET])
def test_upstream_restart_causes_no_error_for_stored_entries(how: Failure) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(Daemon((1_055.0, 1_085.0), how)), upstream=DAEMON)
        targets = [INSTANCE, TOKEN, VERSIONS, leaf(1)]
        for _ in range(240):  # two minutes, every half second
            for served in await asyncio.gather(*(stage.get(target) for target in targets)):
                assert served.response.status == 200
            await asyncio.sleep(0.5)
        assert (await stage.get()).outcome is Outcome.HIT

    virtual.run(scenario())


def test_client_without_an_entry_waits_for_the_upstreams_restart() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(Daemon((1_001.0, 1_031.0), DOWN)), upstream=DAEMON)
        await stage.get(VERSIONS)
        await asyncio.sleep(2)
        served = await stage.get(EVENTS)
        assert served.response.status == 200
        assert 1_031 <= stage.now <= 1_041

    virtual.run(scenario())


def test_proxy_upstream_that_never_answered_fails_soon() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: DOWN), upstream=DAEMON)
        began = stage.now
        served = await stage.get()
        assert (served.response.status, stage.now - began) == (502, 5.0)

    virtual.run(scenario())


# A daemon that takes its time


def test_proxy_upstream_that_waits_for_imds_is_waited_for() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok("late")))
        stage.imds.latency = 70.0
        slow: list[bool] = []
        send = stage.imds.send

        async def noting(*arguments: Any, **named: Any) -> Response | Failure:
            slow.append(named["slow"])
            return await send(*arguments, **named)

        stage.proxy.fetcher._upstream.send = noting  # type: ignore[method-assign]
        assert (await stage.get()).response.body == b"late"
        assert slow == [True], "longer than IMDS itself may take"

    virtual.run(scenario())


def test_stale_entry_is_served_as_soon_as_in_front_of_imds() -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok("old")))
        await stage.get()
        await asyncio.sleep(200)
        stage.imds.latency = 40.0
        began = stage.now
        served = await stage.get()
        assert (served.response.body, served.detail) == (b"old", "stale-if-error")
        assert stage.now - began == 2.0, "IMDSPROXY_STALE_AFTER"
        await asyncio.sleep(40)
        assert (await stage.get()).outcome is Outcome.HIT

    virtual.run(scenario())


def test_429_of_a_proxy_upstream_does_not_change_imds_health(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = chained(by_daemon(ok()), by_daemon(status(429, retry_after=3), "budget"), by_daemon(ok()))
        await stage.get(VERSIONS)
        for number in range(5):
            await stage.get(leaf(number))
        assert not stage.proxy.fetcher.health.failing

    with caplog.at_level(logging.INFO):
        virtual.run(scenario())
    assert not caplog.records


def test_throttled_imds_behind_an_alternating_upstream_is_throttled() -> None:
    async def scenario() -> None:
        stage = chained(
            by_daemon(ok()),
            status(429),
            by_daemon(ok()),
            status(429, retry_after=2),
            ok(),
            upstream="http://10.0.0.9:80",
        )
        for number in range(4):
            assert (await stage.get(leaf(number))).response.status == 200

    virtual.run(scenario())
