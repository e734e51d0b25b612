"""One meaning of "IMDS failed" for retries, stale answers, storing and counting."""

from __future__ import annotations

import asyncio
import json

import pytest

from imdsproxy.ops.readiness import Readiness
from imdsproxy.protocol.messages import Failure, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import Imds, Sent, Stage, in_turn, ok, status, token
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

DOCUMENT = ok('{"compute":{"name":"vm"},"network":{}}')
PAGE = Response(200, ((b"content-type", b"text/html"),), b"<!DOCTYPE html><html><body>Log in</body></html>")
FOREIGN = {
    "page": PAGE,
    "page as JSON": ok(PAGE.body),
    "empty": ok(b""),
    "cut": ok(b'{"compute":{"name":"v'),
    "another document": ok('{"error":"try later"}'),
    "array": ok("[]"),
}
"""What the endpoint of an instance, of a token or of any document cannot have said."""
TARGETS = {INSTANCE: DOCUMENT, TOKEN: token(86400), VERSIONS: ok('{"apiVersions":[]}'), EVENTS: ok('{"Events":[]}')}


@pytest.mark.parametrize("code", [408, 404, 400, 418])
def test_status_in_retry_statuses_is_a_failure_in_every_respect(code: int) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(DOCUMENT, status(code))), retry_statuses=frozenset({code}))
        await stage.get()
        await asyncio.sleep(200)
        began = stage.now
        assert (await stage.get()).outcome is Outcome.STALE
        assert stage.now == began, "the first failed attempt is enough"
        assert stage.proxy.fetcher.health.failing
        await asyncio.sleep(71)
        assert stage.imds.count == 12, "and the retries went on behind it"
        other = await stage.get("/metadata/instance/network?api-version=2021-02-01")
        assert (other.outcome, other.response.status, other.stored) == (Outcome.ERROR, code, False)

    virtual.run(scenario())


@pytest.mark.parametrize("target", [TOKEN, "/metadata/identity/info?api-version=2018-02-01"])
def test_token_404_is_not_stored(target: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        back_at = stage.now + 1.0
        stage.imds.answer = lambda sent: status(404) if sent.at < back_at else token(86400)
        first = await stage.get(target)
        assert (first.response.status, first.outcome, first.stored) == (404, Outcome.ERROR, False)
        await asyncio.sleep(1.1)
        assert (await stage.get(target)).response.status == 200

    virtual.run(scenario())


def test_404_of_another_identity_path_is_no_failure() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: status(404)))
        served = await stage.get("/metadata/identity/getplatformmetadata?cred-api-version=2.0")
        assert (served.response.status, served.outcome) == (404, Outcome.BYPASS)
        assert not stage.proxy.fetcher.health.failing

    virtual.run(scenario())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", FOREIGN)
class TestForeignAnswer:
    def test_replaces_no_entry_and_the_stale_entry_is_served(self, case: str, target: str) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(TARGETS[target], FOREIGN[case]), raw=True), retry_max=0)
            good = await stage.get(target)
            wished = await stage.get(target, headers=((b"cache-control", b"no-cache"),))
            assert (wished.outcome, wished.response.status) == (Outcome.ERROR, 502)
            again = await stage.get(target)
            assert (again.outcome, again.response.body) == (Outcome.HIT, good.response.body)

        virtual.run(scenario())

    def test_unexpected_answer_is_502_with_a_description_and_no_quote(self, case: str, target: str) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: FOREIGN[case], raw=True), retry_max=0)
            served = await stage.get(target)
            assert (served.response.status, served.detail) == (502, "upstream-unexpected")
            assert served.response.header(b"retry-after") == b"1"
            document = json.loads(served.response.body)
            assert document["error"] == "upstream_unexpected"
            assert "with status 200 and " in document["error_description"]
            assert not any(word in document["error_description"] for word in ("Log in", "try later"))
            assert stage.proxy.fetcher.health.failing
            assert not stage.proxy.fetcher.health.answered

        virtual.run(scenario())


def test_is_retried_and_counted_under_its_own_word() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(PAGE, DOCUMENT), raw=True))
        assert (await stage.get()).response.body == DOCUMENT.body
        text = stage.parts.metrics.text().decode()
        assert 'imdsproxy_upstream_requests_total{endpoint="instance",status="upstream-unexpected"} 1.0' in text
        assert 'imdsproxy_upstream_retries_total{endpoint="instance",reason="upstream-unexpected"} 1.0' in text

    virtual.run(scenario())


def test_portal_page_does_not_make_the_proxy_ready() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: PAGE, raw=True))
        readiness = Readiness(stage.proxy, ())
        becoming = asyncio.get_running_loop().create_task(readiness.become())
        await asyncio.sleep(30)
        assert "HTML page" in (readiness.obstacle or "")
        stage.imds.answer = lambda _sent: TARGETS[VERSIONS]
        await becoming
        assert readiness.obstacle is None

    virtual.run(scenario())


@pytest.mark.parametrize("code", [204, 302])
def test_status_that_imds_never_sends_replaces_no_entry(code: int) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(DOCUMENT, status(code))))
        await stage.get()
        await asyncio.sleep(200)
        assert (await stage.get()).outcome is Outcome.STALE

    virtual.run(scenario())


def test_token_of_another_identity_is_never_served() -> None:
    async def scenario() -> None:
        other = ok('{"access_token":"secret","client_id":"other","expires_in":"86400"}')
        stage = Stage(Imds(lambda _sent: other), retry_max=0)
        served = await stage.get(TOKEN + "&client_id=mine")
        assert (served.response.status, b"secret" in served.response.body) == (502, False)
        assert (await stage.get(TOKEN + "&client_id=OTHER")).response.status == 200

    virtual.run(scenario())


@pytest.mark.parametrize(
    "fields",
    [
        ((b"vary", b"*"),),
        ((b"set-cookie", b"a=b"),),
        ((b"content-encoding", b"gzip"),),
    ],
)
def test_unshareable_answer_is_passed_on_and_not_stored(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: Response(200, fields, DOCUMENT.body), raw=True))
        for number in (1, 2):
            served = await stage.get()
            assert (served.response.status, served.stored, stage.imds.count) == (200, False, number)

    virtual.run(scenario())


class TestSilence:
    @pytest.mark.parametrize("stale_after", [0.5, 2.0])
    def test_serves_the_stale_entry_and_the_fetch_continues(self, stale_after: float) -> None:
        async def scenario() -> None:
            stage = Stage(stale_after=stale_after)
            stage.imds.answer = in_turn(ok("old"), ok("new"))
            await stage.get()
            await asyncio.sleep(200)
            stage.imds.latency = 20.0
            began = stage.now
            assert (await stage.get()).response.body == b"old"
            assert stage.now - began == stale_after
            assert (await stage.get()).response.body == b"old"
            assert stage.now - began == stale_after, "who comes later does not wait again"
            await asyncio.sleep(20)
            assert (await stage.get()).response.body == b"new"
            assert stage.imds.count == 2

        virtual.run(scenario())

    def test_is_no_failure_without_an_entry(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: ok("late"), latency=20.0))
            assert (await stage.get()).response.body == b"late"
            assert not stage.proxy.fetcher.health.failing

        virtual.run(scenario())

    def test_includes_the_wait_for_a_permit(self) -> None:
        async def scenario() -> None:
            stage = Stage(budget_requests=1, budget_window=9.0)
            await stage.get()
            await asyncio.sleep(200)
            await stage.get(VERSIONS)
            began = stage.now
            assert (await stage.get()).outcome is Outcome.STALE
            assert stage.now - began == 2.0

        virtual.run(scenario())


def test_retry_after_as_a_date_is_obeyed() -> None:
    async def scenario() -> None:
        dates = ((b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"retry-after", b"Sun, 06 Nov 1994 08:49:43 GMT"))
        stage = Stage(Imds(in_turn(ok("{}", 429, dates), DOCUMENT)))
        began = stage.now
        assert (await stage.get()).response.status == 200
        assert stage.now - began == 6.0

    virtual.run(scenario())


class TestTokens:
    @pytest.mark.parametrize(("life", "fresh"), [(86400, 3600), (3600, 1800), (7400, 3600)])
    def test_are_fresh_for_an_hour(self, life: int, fresh: int) -> None:
        async def scenario() -> None:
            names = iter(range(9))

            def issue(_sent: Sent) -> Response | Failure:
                return token(life, f"token-{next(names)}")

            stage = Stage(Imds(issue))
            await stage.get(TOKEN)
            await asyncio.sleep(fresh - 0.001)
            assert (await stage.get(TOKEN)).outcome is Outcome.HIT
            await asyncio.sleep(0.001)
            assert (await stage.get(TOKEN)).outcome is Outcome.STALE
            await asyncio.sleep(0.1)
            assert b"token-1" in (await stage.get(TOKEN)).response.body

        virtual.run(scenario())

    def test_are_served_stale_until_their_margin_while_imds_fails(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(token(86400), status(500))))
            await stage.get(TOKEN)
            await asyncio.sleep(86400 - 301)
            assert (await stage.get(TOKEN)).outcome is Outcome.STALE

        virtual.run(scenario())

    def test_bypass_cache_replaces_the_token_for_all_clients(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(token(86400, "revoked"), token(86400, "newer"))))
            await stage.get(TOKEN)
            for target, headers in ((TOKEN, ((b"cache-control", b"no-cache"),)), (TOKEN, ())):
                assert b"newer" in (await stage.get(target, headers=headers)).response.body

        virtual.run(scenario())

    def test_age_in_every_figure_of_remaining_seconds(self) -> None:
        async def scenario() -> None:
            body = '{"access_token":"x","expires_in":"86400","ext_expires_in":"86399","refresh_in":43200}'
            stage = Stage(Imds(lambda _sent: ok(body)))
            await stage.get(TOKEN)
            await asyncio.sleep(100)
            expected = '{"access_token":"x","expires_in":"86300","ext_expires_in":"86299","refresh_in":43100}'
            assert (await stage.get(TOKEN)).response.body == expected.encode()

        virtual.run(scenario())
