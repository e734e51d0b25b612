"""The status as it is read from a proxy in virtual time."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from imdsproxy import __version__
from imdsproxy.config import SettingInForce
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.status import Listening, Status
from imdsproxy.ops.status_page import MOST_LIVE, LivePages, figures, page
from imdsproxy.ops.status_reader import MOST_ENTRIES, About, StatusReader
from imdsproxy.ops.token_figures import MOST_TOKENS
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome
from tests.scripted import DOWN, Imds, Sent, Stage, in_turn, ok, status, token
from tests.targets import EVENTS, INSTANCE, TOKEN
from tests.virtual import run

NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
SOME = "e0000000-0000-4000-8000-00000000c111"
SECRET = "a-secret-of-the-client"


def reader(stage: Stage, settings: tuple[SettingInForce, ...] = ()) -> StatusReader:
    readiness = Readiness(stage.proxy, ())
    stage.parts.history.start(stage.now)
    about = About("http://127.0.0.1:9", 1.0, settings)
    return StatusReader(stage.proxy, readiness, stage.parts.history, stage.clock, about)


def read(stage: Stage) -> Status:
    return reader(stage).read()


def by_endpoint(sent: Sent) -> Any:
    if "oauth2/token" in sent.target:
        return status(403) if "forbidden" in sent.target else token(86_400)
    if "scheduledevents" in sent.target:
        return ok('{"DocumentIncarnation":1,"Events":[{"EventType":"Freeze"}]}')
    return ok()


def test_new_proxy_has_sent_nothing() -> None:
    async def scene() -> None:
        stage = Stage()
        found = read(stage)
        assert (found.schema, found.time) == (1, "2027-01-15T08:00:00Z")
        assert (found.proxy.version, found.proxy.pid, found.proxy.uptime) == (__version__, os.getpid(), 0.0)
        assert (found.proxy.obstacle or "").startswith("IMDS has not answered yet: ")
        assert not found.proxy.ready
        assert (found.imds.state, found.imds.last_success, found.imds.last_failure) == ("unknown", None, None)
        assert (found.requests.answered, found.requests.saved, found.clients) == (0, 0, ())
        assert [(each.name, each.permits, each.free, each.waiting) for each in found.budget] == [("general", 5, 5, 0)]
        assert (found.cache.entries, found.cache.listed, found.tokens, found.events) == (0, (), (), None)

    run(scene())


def test_status_has_the_values_of_the_composition() -> None:
    async def scene() -> None:
        made = reader(Stage(), (SettingInForce("IMDSPROXY_PORT", "1", "flag --port"),))
        made.listeners = (Listening("unix:/run/x", admin=False),)
        document = json.loads(made.json())
        assert document["proxy"]["upstream"] == "http://127.0.0.1:9"
        assert document["proxy"]["listeners"] == [{"address": "unix:/run/x", "admin": False}]
        assert document["proxy"]["settings"] == [{"name": "IMDSPROXY_PORT", "value": "1", "source": "flag --port"}]

    run(scene())


def test_entries_are_listed_with_their_hits_and_without_their_query() -> None:
    async def scene() -> None:
        stage = Stage(Imds(by_endpoint))
        for _ in range(3):
            await stage.get(f"/metadata/instance?api-version=2021-02-01&note={SECRET}")
        await stage.get(NAME)
        await asyncio.sleep(10)
        found = read(stage)
        whole, name = found.cache.listed
        assert (whole.path, whole.endpoint, whole.api_version, whole.hits) == (
            "/metadata/instance",
            "instance",
            "2021-02-01",
            2,
        )
        assert (whole.status, whole.age, whole.fresh, whole.usable) == (200, 10, 50.0, 3650.0)
        assert (name.path, name.hits) == ("/metadata/instance/compute/name", 0)
        assert found.cache.bytes == whole.bytes + name.bytes <= found.cache.max_bytes
        assert SECRET not in str(found)

    run(scene())


def test_renewed_entry_keeps_its_hits_and_a_stale_answer_counts() -> None:
    async def scene() -> None:
        stage = Stage(Imds(in_turn(ok(), ok(), DOWN), latency=0.1))
        await stage.get()
        await stage.get()
        await asyncio.sleep(61)
        await stage.get()  # stale, and renewed behind it
        await asyncio.sleep(1)
        await stage.get()
        await asyncio.sleep(130)
        await stage.get()  # IMDS fails
        assert read(stage).cache.listed[0].hits == 4

    run(scene())


def test_only_so_many_entries_are_listed_and_all_are_counted() -> None:
    async def scene() -> None:
        stage = Stage(budget_requests=10_000)
        await asyncio.gather(*(stage.get(f"{INSTANCE}&n={number}") for number in range(MOST_ENTRIES + 5)))
        await stage.get(f"{INSTANCE}&n=104")
        found = read(stage)
        assert found.cache.entries == MOST_ENTRIES + 5
        assert len(found.cache.listed) == MOST_ENTRIES
        assert found.cache.listed[0].hits == 1

    run(scene())


def test_evicted_entries_are_counted() -> None:
    async def scene() -> None:
        stage = Stage(Imds(lambda _sent: ok(b"x" * 9000)), cache_max_bytes=65_536, budget_requests=100)
        await asyncio.gather(*(stage.get(f"/metadata/versions?n={number}") for number in range(10)))
        found = read(stage).cache
        assert found.evictions + found.entries == 10
        assert found.evictions > 0

    run(scene())


def test_token_is_shown_by_audience_and_hash_with_its_deadlines() -> None:
    async def scene() -> None:
        stage = Stage(Imds(by_endpoint))
        await stage.get(f"{TOKEN}&client_id={SOME}")
        await asyncio.sleep(60)
        found = read(stage)
        (made,) = found.tokens
        assert (made.audience, made.identity) == ("https://vault.azure.net", "a1f265a7")
        assert (made.expires, made.renewal, made.failure) == (86_340.0, 3540.0, None)
        assert SOME not in str(found)

    run(scene())


def test_failed_renewal_is_shown_with_its_token() -> None:
    async def scene() -> None:
        stage = Stage(Imds(in_turn(token(86_400), status(403))))
        await stage.get(TOKEN)
        await asyncio.sleep(3700)
        await stage.get(TOKEN)
        await asyncio.sleep(5)
        (made,) = read(stage).tokens
        assert made.expires == 86_400 - 3705
        assert made.renewal == 0.0
        assert made.failure is not None
        assert (made.failure.ago, made.failure.status) == (5.0, "403")

    run(scene())


def test_token_that_was_never_received_is_shown_first() -> None:
    async def scene() -> None:
        stage = Stage(Imds(by_endpoint))
        await stage.get(TOKEN)
        await stage.get("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=forbidden")
        first, second = read(stage).tokens
        assert (first.audience, first.expires, first.renewal) == ("forbidden", None, None)
        assert first.failure is not None
        assert second.failure is None

    run(scene())


def test_only_so_many_tokens_are_listed() -> None:
    async def scene() -> None:
        stage = Stage(Imds(by_endpoint), budget_requests=1000)
        await asyncio.gather(*(stage.get(f"{TOKEN}/{number}") for number in range(MOST_TOKENS + 5)))
        assert len(read(stage).tokens) == MOST_TOKENS

    run(scene())


def test_imds_and_the_clients_that_spend_are_told() -> None:
    async def scene() -> None:
        stage = Stage(Imds(in_turn(ok(), DOWN)), retry_max=1)
        await stage.get(client=Peer(user=1000, process=5))
        await stage.get(NAME, client="10.0.0.9")
        await asyncio.sleep(4)
        found = read(stage)
        assert (found.imds.state, found.imds.since) == ("failing", 5.0)
        assert found.imds.last_failure is not None
        assert (found.imds.last_failure.ago, found.imds.last_failure.words) == (4.0, "connection refused")
        assert found.imds.last_hour == {"upstream-unreachable": 2, "200": 1}
        assert {each.name: each.sent for each in found.clients} == {"10.0.0.9": 2, "user 1000, process 5": 1}
        assert sum(row.get("sent", 0) for row in found.history.budget) == 3

    run(scene())


def test_calls_saved_are_what_clients_asked_less_what_was_sent() -> None:
    async def scene() -> None:
        stage = Stage()
        for _ in range(10):
            stage.parts.metrics.observe(await stage.get(), 0.0)
        refused = (await stage.get())._replace(outcome=Outcome.REFUSED)
        stage.parts.metrics.observe(refused, 0.0)
        found = read(stage)
        assert (found.requests.answered, found.requests.sent_to_imds, found.requests.saved) == (11, 1, 9)
        assert found.requests.by_outcome == {"miss": 1, "hit": 9, "refused": 1}
        assert found.history.outcomes[-1] == found.requests.by_outcome

    run(scene())


def test_waiting_and_refused_requests_are_counted_for_each_budget() -> None:
    async def scene() -> None:
        stage = Stage(Imds(latency=0.5), identity_budget_requests=20, max_wait=1.5)
        waiting = [stage.start(f"{INSTANCE}&n={number}") for number in range(12)]
        await asyncio.sleep(0.1)
        general, identity = read(stage).budget
        assert (general.name, general.free, general.permits, identity.name) == ("general", 0, 5, "identity")
        assert general.waiting == 5
        assert general.refused == 2
        assert general.estimated_wait > 1.0
        assert (identity.waiting, identity.refused, identity.permits) == (0, 0, 20)
        await asyncio.gather(*waiting)

    run(scene())


@pytest.mark.parametrize(("upstream", "chained"), [("http://127.0.0.1:9", False), ("unix:/run/imdsproxy.sock", True)])
def test_proxy_behind_another_says_so(upstream: str, chained: bool) -> None:
    async def scene() -> None:
        assert read(Stage(upstream=upstream)).proxy.chained is chained

    run(scene())


def test_pending_events_are_told_once_a_client_has_asked() -> None:
    async def scene() -> None:
        stage = Stage(Imds(by_endpoint))
        await stage.get(EVENTS)
        await asyncio.sleep(3)
        found = read(stage).events
        assert found is not None
        assert (found.ago, found.pending["Freeze"]) == (3.0, 1)

    run(scene())


def test_json_is_ascii_without_markup_or_infinity_and_repeated_within_a_second() -> None:
    async def scene() -> None:
        stage = Stage(Imds(by_endpoint))
        await stage.get("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=%3Cscript%3E%C3%A9%26")
        made = reader(stage)
        written = made.json()
        assert b"<" not in written
        assert b"&" not in written
        assert json.loads(written.decode("ascii"))["tokens"][0]["audience"] == "<script>é&"
        await asyncio.sleep(0.9)
        assert made.json() is written
        await asyncio.sleep(0.2)
        assert json.loads(made.json())["proxy"]["uptime"] == 1.1

    run(scene())


# --- the page


def test_page_for_one_answer_differs_by_its_mark_only() -> None:
    live, once, headers = page()
    assert "connect-src" not in headers["content-security-policy"]
    assert once == live.replace(b'<html lang="en">', b'<html lang="en" data-once="true">')


def test_page_that_is_not_live_has_figures_once() -> None:
    pages = LivePages(lambda: b"{}", lambda: False)
    assert pages.once() == page().once + figures(b"{}")


def test_live_page_gets_figures_every_two_seconds_until_the_proxy_stops() -> None:
    async def scene() -> None:
        began = asyncio.get_running_loop().time()

        def seconds() -> float:
            return asyncio.get_running_loop().time() - began

        pages = LivePages(lambda: b"%d" % seconds(), lambda: seconds() >= 5.4)
        parts = [part async for part in pages.parts()]
        assert parts == [page().live + figures(b"0"), figures(b"2"), figures(b"4")]
        assert seconds() == 5.5

    run(scene())


@pytest.mark.parametrize("left", [0, 1])
def test_only_so_many_pages_are_live_at_once(left: int) -> None:
    async def scene() -> None:
        pages = LivePages(lambda: b"{}", lambda: False)
        opened = [pages.parts() for _ in range(MOST_LIVE)]
        for each in opened:
            await anext(each)
            await anext(each)
        for each in opened[:left]:
            await each.aclose()
        first = await anext(aiter(pages.parts()))
        assert first.startswith(page().live if left else page().once)
        for each in opened[left:]:
            await each.aclose()

    run(scene())
