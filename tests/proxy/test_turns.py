"""The order of waiting requests: a flood of one kind delays another kind by one turn, not by the whole flood."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.budget.bucket import Budget, Permit
from imdsproxy.budget.fair_semaphore import FairSemaphore, Place
from imdsproxy.budget.limiter import Limiter, Ticket
from imdsproxy.budget.shares import Recall
from imdsproxy.budget.turns import turn_of
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import Imds, Stage, token
from tests.size import size
from tests.targets import EVENTS, INSTANCE, TOKEN

# Measuring coverage would triple its time, and other tests reach the same branches.
pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]


def leaf(number: int) -> str:
    return f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01"


def test_token_request_does_not_wait_behind_a_flood_of_instance_requests() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda sent: token(86400)))
        flood = [stage.start(leaf(number)) for number in range(500)]
        await asyncio.sleep(0.5)
        assert sum(task.done() and task.result().outcome is Outcome.REFUSED for task in flood) > 400
        began = stage.now
        assert (await stage.get(TOKEN)).response.status == 200
        assert stage.now - began <= 1.0

    virtual.run(scenario())


async def pass_through(limiter: Limiter, client: str, kind: str = "") -> float:
    """Take a permit and release it at once. Return the seconds that it took to get it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    permit = await limiter.acquire(Ticket(Peer(client), kind))
    assert isinstance(permit, Permit)
    limiter.release(permit)
    return loop.time() - began


def test_clients_take_turns_and_so_do_the_kinds_of_each() -> None:
    order: list[str] = []

    async def scenario() -> None:
        limiter = Limiter(Budget(1, 1.0), virtual.VirtualClock(), max_wait=100)

        async def one(name: str) -> None:
            await pass_through(limiter, name[0], name[1])
            order.append(name)

        await asyncio.gather(*map(one, ["ax1", "ax2", "ax3", "ay1", "ay2", "bx1", "bx2", "cz1"]))

    virtual.run(scenario())
    assert order[0] == "ax1", "no request waited yet"
    assert order[1:] == ["ax2", "bx1", "cz1", "ay1", "bx2", "ax3", "ay2"]


@pytest.mark.parametrize(
    ("waiting", "client", "kind", "seconds"),
    [
        ("", "a", "x", 1),
        ("ax ax ax", "a", "x", 4),
        ("ax ax ax", "a", "y", 2),
        ("ax ax ax", "b", "x", 2),
        ("ax ax ax ay bx", "b", "y", 4),
        ("ax ax bx bx cx cx", "d", "x", 4),
        ("ax bx cx", "a", "x", 4),
        ("ax ay az bx", "c", "x", 3),
    ],
)
def test_expected_wait_equals_the_real_wait(waiting: str, client: str, kind: str, seconds: int) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        limiter = Limiter(Budget(1, 1.0), virtual.VirtualClock(), max_wait=100)
        await pass_through(limiter, "first")
        others = [loop.create_task(pass_through(limiter, name[0], name[1])) for name in waiting.split()]
        await asyncio.sleep(0)
        ahead = limiter._waiting.ahead_of_new(turn_of(Peer(client)), kind)
        assert limiter.budget.expected_wait(ahead, loop.time()) == pytest.approx(seconds)
        assert await pass_through(limiter, client, kind) == pytest.approx(seconds)
        await asyncio.gather(*others)

    virtual.run(scenario())


@pytest.mark.attack(14, 18)
def test_client_with_a_thousand_targets_delays_another_by_about_one_round() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=1_000.0)
        stage.imds.latency = 0.05
        flood = [stage.start(leaf(number), client="10.0.0.7") for number in range(1_000)]
        await asyncio.sleep(3.0)
        began = stage.now
        assert (await stage.get(leaf(5_000), client="10.0.0.8")).outcome is Outcome.MISS
        assert stage.now - began <= 1.1, "one round: a window and the time that IMDS takes"
        done = await asyncio.gather(*flood)
        assert {served.outcome for served in done} == {Outcome.MISS}

    virtual.run(scenario())


def test_client_that_joins_a_queued_fetch_brings_it_forward_to_its_own_turn() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=1_000.0)
        flood = [stage.start(leaf(number), client="10.0.0.7") for number in range(1_000)]
        await asyncio.sleep(2.5)
        began = stage.now
        last = stage.start(leaf(999), client="10.0.0.8")
        assert (await last).outcome is Outcome.COLLAPSED
        assert stage.now - began <= 1.0
        await asyncio.gather(*flood)
        assert stage.imds.count == 1_000

    virtual.run(scenario())


def test_background_refresh_with_a_waiting_client_gets_that_clients_turn() -> None:
    async def scenario() -> None:
        stage = Stage(budget_requests=1, max_wait=1_000.0)
        await stage.get(INSTANCE)
        await asyncio.sleep(61)
        flood = [stage.start(leaf(number), client="10.0.0.7") for number in range(20)]
        await asyncio.sleep(0)
        assert (await stage.get(INSTANCE, client="10.0.0.8")).outcome is Outcome.STALE
        await asyncio.sleep(60)
        began = stage.now
        flood += [stage.start(leaf(number), client="10.0.0.7") for number in range(20, 40)]
        assert (await stage.get(INSTANCE, client="10.0.0.8")).response.status == 200
        assert stage.now - began <= 2.0
        await asyncio.gather(*flood)

    virtual.run(scenario())


def test_identity_and_scheduled_events_come_before_background_refreshes() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda sent: token(86400)), budget_requests=1)
        kept = [leaf(number) for number in range(8)]
        for target in kept:
            await stage.get(target)
        await asyncio.sleep(55)
        for target in kept:  # all of them stale by now, each is renewed behind its answer
            await stage.get(target)
        asked = [stage.start(TOKEN, client="a"), stage.start(EVENTS, client="b")]
        before = stage.imds.count
        await asyncio.gather(*asked)
        assert stage.imds.count - before <= 3, "one refresh may have been under way"

    virtual.run(scenario())


def place(client: str = "", *, usual: bool = True) -> Place:
    return Place(turn_of(Peer(client)), usual, Recall())


def test_slow_places_are_shared_among_clients_in_turn() -> None:
    order: list[str] = []

    async def scenario() -> None:
        places = FairSemaphore(1, virtual.VirtualClock())

        async def one(name: str) -> None:
            mine = place(name[0])
            if await places.acquire(mine, 100):
                order.append(name)
                await asyncio.sleep(1)
                places.release(mine)
            else:
                order.append(f"{name} refused")

        await asyncio.gather(*map(one, [*(f"a{number}" for number in range(12)), "b0", "c0"]))

    virtual.run(scenario())
    assert order[:5] == ["a0", "a9 refused", "a10 refused", "a11 refused", "b0"]
    assert order[5:7] == ["c0", "a1"], "eight of one client may wait, and others take turns with them"


def test_place_of_a_disconnected_client_goes_to_the_next() -> None:
    async def scenario() -> None:
        places = FairSemaphore(1, virtual.VirtualClock())
        first = place("a")
        assert await places.acquire(first, 1)
        assert not await places.acquire(place("b"), 1)
        waiting = asyncio.get_running_loop().create_task(places.acquire(place("c"), 100))
        await asyncio.sleep(1)
        places.release(first)
        waiting.cancel()  # in the moment in which its turn came
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await places.acquire(place("d"), 0)

    virtual.run(scenario())


def test_slow_scheduled_events_leave_permits_for_other_requests() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda sent: token(86400)), max_wait=2.0)
        stage.imds.latency = 120.0
        events = [stage.start(f"{EVENTS}&x={number}") for number in range(5)]
        await asyncio.sleep(1)
        assert stage.imds.under_way == 2
        stage.imds.latency = 0.0
        assert (await stage.get(TOKEN)).response.status == 200
        for task in events:
            task.cancel()
        await stage.proxy.fetches.close()

    virtual.run(scenario())


def test_of_slow_requests_that_imds_has_perhaps_not_read_one_is_recalled() -> None:
    """IMDS counts a request when it reads it, so those that were sent instead of others would come on top."""

    async def scenario() -> None:
        stage = Stage(Imds(), ttl=(("/metadata/instance", 0.0),))
        stage.imds.latency = 120.0
        unusual = [stage.start(f"{EVENTS}&x={number}", client="a") for number in range(2)]
        await asyncio.sleep(2)
        assert stage.imds.count == 2
        usual = [
            stage.start(f"/metadata/scheduledevents?api-version={version}", client=client)
            for version, client in (("2020-07-01", "b"), ("2019-08-01", "c"))
        ]
        await asyncio.sleep(5)
        assert stage.imds.count == 3, "IMDS has answered nothing since"
        stage.imds.latency = 0.0
        await stage.get(INSTANCE, client="d")
        stage.imds.latency = 120.0
        await asyncio.sleep(1)
        assert stage.imds.count == 5
        for task in (*unusual, *usual):
            task.cancel()
        await stage.proxy.fetches.close()

    virtual.run(scenario())


@pytest.mark.parametrize("cancelled_first", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_permit_granted_at_the_moment_of_a_disconnect_goes_to_the_next(cancelled_first: bool, background: bool) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        limiter = Limiter(Budget(1, 1.0), virtual.VirtualClock(), max_wait=100)
        held = await limiter.acquire(Ticket())
        assert isinstance(held, Permit)
        gone = loop.create_task(limiter.acquire(Ticket(background=background)))
        following = loop.create_task(limiter.acquire(Ticket(background=True)))
        await asyncio.sleep(0)
        if cancelled_first:
            gone.cancel()
        limiter.release_unused(held)  # the one permit is back, and granted at once
        if not cancelled_first:
            gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        taken = await following
        assert isinstance(taken, Permit)
        assert taken.taken_at == loop.time()
        limiter.release_unused(taken)
        assert limiter.budget.available(loop.time()) == 1

    virtual.run(scenario())


def test_released_place_skips_clients_that_have_just_disconnected() -> None:
    async def scenario() -> None:
        places = FairSemaphore(1, virtual.VirtualClock())
        held = place("a")
        assert await places.acquire(held, 1)
        loop = asyncio.get_running_loop()
        for give_up_first in (True, False):
            waiting = loop.create_task(places.acquire(place("b"), 100))
            behind = place("c")
            following = loop.create_task(places.acquire(behind, 100))
            await asyncio.sleep(0)
            if give_up_first:
                waiting.cancel()
            places.release(held)
            held = behind
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await following
        places.release(held)
        assert await places.acquire(place("d"), 0)

    virtual.run(scenario())


def test_late_joiner_waits_its_own_max_wait() -> None:
    async def scenario() -> None:
        stage = Stage(budget_requests=1, max_wait=10.0)
        flood = [stage.start(leaf(number), client="a") for number in range(30)]
        await asyncio.sleep(9.3)  # the one below has waited as long, in vain
        waiting = [number for number, task in enumerate(flood) if not task.done()]
        late = stage.start(leaf(waiting[-1]), client="b")
        began = stage.now
        served = await late
        assert served.response.status == 200
        assert stage.now - began <= 2.0
        await asyncio.gather(*flood)

    virtual.run(scenario())


def test_late_joiner_is_not_refused_with_the_client_that_started_the_fetch() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(), budget_requests=1, max_wait=10.0)
        stage.imds.latency = 9.99
        first = stage.start(leaf(0), client="a")
        await asyncio.sleep(0)
        second = stage.start(leaf(1), client="a")
        await asyncio.sleep(9.9)
        late = stage.start(leaf(1), client="b")
        stage.imds.latency = 0.0
        assert (await second).outcome is Outcome.REFUSED
        began = stage.now
        assert (await late).response.status == 200
        assert stage.now - began <= 1.5
        await first

    virtual.run(scenario())


def test_ticket_with_many_clients_keeps_those_with_the_shortest_queues() -> None:
    async def scenario() -> None:
        stage = Stage(budget_requests=1, max_wait=1_000.0)
        floods = [
            stage.start(leaf(100 * client + number), client=f"busy {client}")
            for client in range(20)
            for number in range(10)
        ]
        common = [stage.start(leaf(9_999), client=f"busy {client}") for client in range(20)]
        await asyncio.sleep(0.5)
        began = stage.now
        assert (await stage.get(leaf(9_999), client="idle")).response.status == 200
        assert stage.now - began <= 25, "a round of all clients"
        await asyncio.gather(*floods, *common)

    virtual.run(scenario())


def test_refused_clients_get_different_retry_after_and_are_served_then() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=2.0)
        told: list[int] = []

        async def client(number: int) -> None:
            served = await stage.get(leaf(number), client=f"10.0.0.{number}")
            if served.response.status == 429:
                told.append(int(served.response.header(b"retry-after") or 0))
                await asyncio.sleep(told[-1])
                began = stage.now
                assert (await stage.get(leaf(number), client=f"10.0.0.{number}")).response.status == 200
                assert stage.now - began <= 1.2

        await asyncio.gather(*map(client, range(200)))
        assert (min(told), max(told)) == (3, 40)
        assert max(map(told.count, told)) <= 10, "about as many at a time as there is for them"
        assert stage.now <= 1_041, "the least that five a second allow"

    virtual.run(scenario())


def test_retry_after_is_at_most_two_minutes() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=2.0)

        async def told(client: str) -> list[int]:
            served = await asyncio.gather(
                *(stage.get(leaf(number), client=client or str(number)) for number in range(2_000))
            )
            return [int(one.response.header(b"retry-after") or 0) for one in served if one.response.status == 429]

        assert max(await told("")) == 120
        await asyncio.sleep(200)
        assert max(await told("one client")) == 3, "it is the only client, and gets the next permit"

    virtual.run(scenario())


@pytest.mark.attack(18)
@pytest.mark.parametrize(
    ("attackers", "other"),
    [
        ([Peer(address=f"127.0.1.{number}") for number in range(60)], Peer(user=1000, process=1)),
        ([Peer(address=f"127.0.1.{number}") for number in range(60)], Peer(address="10.0.0.7")),
        ([Peer(user=1001, process=number) for number in range(60)], Peer(user=1000, process=99)),
        ([Peer(user=1001, proxy=f"forged {number}") for number in range(60)], Peer(user=1000)),
        ([Peer(address="10.0.0.8", proxy=f"forged {number}") for number in range(60)], Peer(address="10.0.0.7")),
        ([Peer(address=f"2001:db8::{number}") for number in range(60)], Peer(address="10.0.0.7")),
    ],
    ids=["loopback", "loopback, by address", "processes", "via", "via, by address", "an IPv6 network"],
)
def test_client_with_many_addresses_has_the_turns_of_one(attackers: list[Peer], other: Peer) -> None:
    async def scenario() -> None:
        stage = Stage()
        number = 0

        async def ask_for_ever(attacker: Peer) -> None:
            nonlocal number
            while True:
                number += 1
                await stage.get(leaf(number), client=attacker)
                await asyncio.sleep(size(short=0.25, full=0.05))  # hundreds of requests a second

        loop = asyncio.get_running_loop()
        flood = [loop.create_task(ask_for_ever(attacker)) for attacker in attackers]
        await asyncio.sleep(5.0)
        for question in range(size(short=8, full=20)):
            began = stage.now
            assert (await stage.get(leaf(-question - 1), client=other)).response.status == 200
            assert stage.now - began <= 1.1, "one round"
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await stage.proxy.fetches.close()

    virtual.run(scenario())


def test_refused_proxies_at_a_socket_get_retry_after_in_sequence() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=2.0)

        async def told(number: int) -> int | None:
            served = await stage.get(leaf(number), client=Peer(user=65532, proxy=f"sidecar {number}"))
            return int(served.response.header(b"retry-after") or 0) if served.response.status == 429 else None

        seconds = [one for one in await asyncio.gather(*map(told, range(200))) if one is not None]
        assert max(seconds) == 40
        assert max(map(seconds.count, seconds)) <= 10

    virtual.run(scenario())


@pytest.mark.attack(18)
def test_forged_proxy_names_do_not_delay_another_user() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=2.0)
        flood = [stage.start(leaf(number), client=Peer(user=1001, proxy=f"forged {number}")) for number in range(2_000)]
        await asyncio.sleep(0)
        others = [stage.start(leaf(-number), client=Peer(user=1000, process=1)) for number in range(1, 21)]
        told = [int((await one).response.header(b"retry-after") or 0) for one in others]
        assert 0 < max(told) <= 5
        await asyncio.gather(*flood)

    virtual.run(scenario())
