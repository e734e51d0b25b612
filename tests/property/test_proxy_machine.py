"""The whole proxy as a state machine on a fake clock, with invariants that hold after every step.

Several users ask, hang up and approve events. IMDS fails and recovers, clocks jump, entries are purged, and the access
rules change. After every step, the invariants of this file hold.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from imdsproxy.access.file import read_rules
from imdsproxy.access.guard import Guard
from imdsproxy.access.subject import Names
from imdsproxy.budget.bucket import Budget
from imdsproxy.protocol.messages import Failure, Headers, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome, RequestRecord
from tests.scripted import DOWN, SLOW, Imds, Sent, Stage, ok, status, token
from tests.size import examples
from tests.targets import EVENTS, VERSIONS
from tests.virtual import VirtualLoop

TARGETS = [
    VERSIONS,
    "/metadata/instance?api-version=2021-02-01",
    "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text",
    "/metadata/instance/network?api-version=2021-02-01",
    "/metadata/attested/document?api-version=2020-09-01",
    "/metadata/attested/document?api-version=2020-09-01&nonce=1234567890",
    EVENTS,
    *(
        f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}&client_id={client}"
        for resource in "ab"
        for client in "xy"
    ),
]
# The longest that an answer may be used after IMDS wrote it, by the README's table: fresh plus stale if IMDS fails.
OLDEST = [
    3600 + 86400,
    60 + 3600,
    300 + 3600,
    30 + 3600,
    60,
    0,
    1,
    *[86400 - 300] * 4,
]
LIVES = [400, 700, 86400]
WEATHERS = ["fine", "gone", "broken", "busy", "down", "slow"]
USERS = [33, 34, 35]
ASKED_MOST = 100.0
"""Seconds after which every client has an answer: it waits 10 s for a permit, and IMDS is asked again for 70 s."""
MEMORY = 400_000
"""Bytes of the cache. Some rules fill it."""


class AccessCase(NamedTuple):
    """Access rules, and by whom they let a target be asked for, said once more without them."""

    file: str
    allows: Callable[[int, str], bool]


ACCESS = [
    AccessCase('default = "allow"', lambda _user, _target: True),
    AccessCase(
        'default = "deny"\n[[rule]]\nname = "one"\nuser = 33\nallow = "/metadata"', lambda user, _target: user == 33
    ),
    AccessCase(
        'default = "allow"\n[[rule]]\nname = "none"\nuser = [34, 35]\ndeny = "/metadata/identity"',
        lambda user, target: user == 33 or "/identity/" not in target,
    ),
    AccessCase(
        'default = "deny"\n[[rule]]\nname = "x"\nuser = 33\n[[rule.token]]\nidentity = "client_id=x"\n'
        '[[rule]]\nname = "y"\nuser = 34\n[[rule.token]]\nidentity = "client_id=y"\n'
        '[[rule]]\nname = "documents"\nanyone = true\nallow = ["/metadata/instance", "/metadata/versions"]',
        lambda user, target: (
            target.startswith(("/metadata/instance", "/metadata/versions"))
            or (user == 33 and target.endswith("client_id=x"))
            or (user == 34 and target.endswith("client_id=y"))
        ),
    ),
]


class Question(NamedTuple):
    """A request of a client, as it was asked."""

    began: float
    target: str
    oldest: float
    refused: bool


class ProxyMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.weather = "fine"
        self.life = 86400
        self.written: dict[str, tuple[float, str, int]] = {}
        self.stage = Stage(Imds(self.imds_answers, latency=0.05), cache_max_bytes=MEMORY)
        self.access = ACCESS[0]
        self.rules_change(self.access)
        self.asked: dict[asyncio.Task[RequestRecord], Question] = {}
        self.approvals: dict[bytes, RequestRecord | None] = {}
        self.numbers = itertools.count()
        self.wrong: list[BaseException] = []

    def teardown(self) -> None:
        async def end() -> None:
            for task in self.asked:
                task.cancel()
            await asyncio.gather(*self.asked, return_exceptions=True)
            await self.stage.proxy.fetches.close()

        self.loop.run_until_complete(end())
        asyncio.set_event_loop(None)
        self.loop.close()

    def imds_answers(self, sent: Sent) -> Response | Failure:
        match self.weather:
            case "gone":
                return status(410)
            case "broken":
                return status(500)
            case "busy":
                return status(429)
            case "down":
                return DOWN
            case "slow":
                return SLOW
        name = f"w{len(self.written)}"
        self.written[name] = (self.loop.time(), sent.target, self.life)
        return token(self.life, name) if "token" in sent.target else ok(json.dumps({"name": name}))

    def perform(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def start(
        self, target: str, user: int, *, kind: str = "", oldest: float = 0, headers: Headers = (), **more: Any
    ) -> asyncio.Task[RequestRecord]:
        """Send a request of a user. `kind` is the target without what is there for the cache alone."""
        task = self.stage.start(target, client=Peer(user=user), headers=headers, **more)
        question = Question(self.loop.time(), kind or target, oldest, not self.access.allows(user, kind or target))
        self.asked[task] = question
        task.add_done_callback(lambda done: self.look(question, done))
        return task

    @rule(
        index=st.integers(0, len(TARGETS) - 1),
        user=st.sampled_from(USERS),
        wish=st.sampled_from(["", "&bypass_cache=true", "no-cache"]),
    )
    def ask(self, index: int, user: int, wish: str) -> None:
        async def one() -> None:
            headers = ((b"cache-control", b"no-cache"),) if wish == "no-cache" else ()
            target = TARGETS[index] + (wish if "?" in TARGETS[index] and wish.startswith("&") else "")
            self.start(target, user, kind=TARGETS[index], oldest=OLDEST[index], headers=headers)
            await asyncio.sleep(0)
            await asyncio.sleep(0.2)

        self.perform(one())

    @rule(
        index=st.integers(0, len(TARGETS) - 1),
        user=st.sampled_from(USERS),
        life=st.sampled_from(LIVES),
        weather=st.sampled_from(WEATHERS),
        seconds=st.sampled_from([-2.0, 2.0]),
    )
    def ask_again_at_the_end(self, index: int, user: int, life: int, weather: str, seconds: float) -> None:
        """Ask in fine weather, and again just before or after the end. A random walk seldom comes back just then."""
        self.life = life
        self.weather = "fine"
        self.ask(index, user, "no-cache")
        self.weather = weather
        end = life - 300 if "token" in TARGETS[index] else OLDEST[index]
        self.perform(asyncio.sleep(max(0.0, end + seconds)))
        self.ask(index, user, "")

    @rule(index=st.integers(0, len(TARGETS) - 1), count=st.integers(2, 30))
    def ask_many_times(self, index: int, count: int) -> None:
        async def many() -> None:
            for number in range(count):
                self.start(TARGETS[index], USERS[number % len(USERS)], oldest=OLDEST[index])
            await asyncio.sleep(0.2)

        self.perform(many())

    @rule(user=st.sampled_from(USERS), count=st.integers(1, 40))
    def ask_for_what_no_other_asks(self, user: int, count: int) -> None:
        async def flood() -> None:
            for _ in range(count):
                target = f"/metadata/instance/compute/x{next(self.numbers)}?api-version=2021-02-01"
                self.start(target, user, oldest=60 + 3600)
            await asyncio.sleep(0.2)

        self.perform(flood())

    @rule(user=st.sampled_from(USERS), hangs_up=st.booleans())
    def approve(self, user: int, *, hangs_up: bool) -> None:
        async def one() -> None:
            body = b'{"StartRequests":[{"EventId":"%d"}]}' % next(self.numbers)
            task = self.start(EVENTS, user, method="POST", body=body)
            self.approvals[body] = None

            def note(done: asyncio.Task[RequestRecord]) -> None:
                if not done.cancelled() and done.exception() is None:
                    self.approvals[body] = done.result()

            task.add_done_callback(note)
            await asyncio.sleep(0)
            if hangs_up:
                task.cancel()
            await asyncio.sleep(0.2)

        self.perform(one())

    @rule(case=st.sampled_from(ACCESS))
    def rules_change(self, case: AccessCase) -> None:
        rules = read_rules(case.file, "access.toml").resolved(Names({}, {}))
        if self.stage.proxy.access is None:
            self.stage.proxy.access = Guard(rules)
        self.stage.proxy.access.replace(rules)
        self.access = case

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 31.0, 61.0, 130.0, 400.0, 3700.0, 43300.0, 90000.0]))
    def time_passes(self, seconds: float) -> None:
        self.perform(asyncio.sleep(seconds))

    @rule(weather=st.sampled_from(WEATHERS), latency=st.sampled_from([0.0, 0.05, 0.9]))
    def weather_changes(self, weather: str, latency: float) -> None:
        self.weather = weather
        self.stage.imds.latency = latency

    @rule(life=st.sampled_from(LIVES))
    def tokens_live(self, life: int) -> None:
        self.life = life

    @rule(seconds=st.sampled_from([-3600, 3600, 86400]))
    def wall_clock_jumps(self, seconds: int) -> None:
        self.stage.clock.wall_offset += seconds

    @rule(path=st.sampled_from([None, "/metadata/instance", "/metadata/identity"]))
    def entries_are_dropped(self, path: str | None) -> None:
        async def drop() -> None:
            self.stage.proxy.drop(path)

        self.perform(drop())

    @precondition(lambda self: any(not task.done() for task in self.asked))
    @rule()
    def clients_hang_up(self) -> None:
        async def hang_up() -> None:
            for task in self.asked:
                task.cancel()
            await asyncio.sleep(0.01)

        self.perform(hang_up())

    def look(self, question: Question, done: asyncio.Task[RequestRecord]) -> None:
        """Store the error for the next invariant, because the event loop would swallow it."""
        if done.cancelled():
            return
        try:
            self.check(question, done.result())
        except Exception as error:  # noqa: BLE001  # whatever it is, the next invariant tells it
            self.wrong.append(error)

    def check(self, question: Question, served: RequestRecord) -> None:
        """Check what holds for every answer, at the moment of the answer."""
        now = self.loop.time()
        if question.refused:
            assert (served.response.status, served.outcome) == (403, Outcome.REFUSED), "an answer to another peer"
            assert now == question.began, "a refused client waited"
            return
        if served.response.status != 200:
            assert served.response.status in {410, 429, 500, 502, 504}
            return
        document = json.loads(served.response.body)
        name = document.get("access_token") or document["name"]
        written_at, target, life = self.written[name]
        assert target.replace("&bypass_cache=true", "") == question.target, "an answer to another question"
        age = now - written_at
        if "access_token" in document:
            left = life - age
            assert int(document["expires_in"]) <= left + 0.001, "more life than it has"
            assert left >= 300 - 1
        elif served.age is not None:
            assert age < question.oldest + 1e-6
            assert served.age >= int(age), "younger than it is"

    @invariant()
    def every_answer_was_right(self) -> None:
        if self.wrong:
            raise self.wrong[0]

    @invariant()
    def no_client_waits_for_ever(self) -> None:
        now = self.loop.time()
        self.asked = {task: question for task, question in self.asked.items() if not task.done()}
        assert all(now - question.began <= ASKED_MOST for question in self.asked.values())

    @invariant()
    def approval_is_sent_once(self) -> None:
        sent = [each.body for each in self.stage.imds.sent if each.method == "POST"]
        assert len(sent) == len(set(sent)), "an approval was doubled"
        for body, answer in self.approvals.items():
            if answer is not None and answer.response.status == 200:
                assert body in sent, "an approval was lost"

    @invariant()
    def memory_is_bounded(self) -> None:
        async def held() -> int:
            return self.stage.proxy.store.bytes

        assert self.loop.run_until_complete(held()) <= MEMORY

    @invariant()
    def imds_never_sees_more_than_its_budget(self) -> None:
        self.stage.imds.assert_within_budget(newest=200)

    @invariant()
    def no_permit_is_lost(self) -> None:
        budget = next(iter(self.stage.proxy.fetcher.limiters.values())).budget
        assert isinstance(budget, Budget)

        async def settles() -> bool:
            # A fetch that has just been given a permit has to be let run to send; if IMDS has just gone, each of a long
            # queue gets one in turn only to give it back. Both are looked at in the same step.
            for _ in range(200):
                if budget._in_flight(self.loop.time()) == self.stage.imds.under_way:
                    return True
                await asyncio.sleep(0)
            return False

        assert self.loop.run_until_complete(settles())


ProxyMachine.TestCase.settings = settings(max_examples=examples(250), stateful_step_count=50, deadline=None)
TestProxyMachine = pytest.mark.any_python(ProxyMachine.TestCase)


@pytest.mark.parametrize("weather", ["fine", "gone", "down", "slow"])
@pytest.mark.parametrize("target", range(len(TARGETS)), ids=lambda index: TARGETS[index])
def test_no_answer_is_used_past_its_end(target: int, weather: str) -> None:
    """The random walk may miss these moments; here each target has them."""
    for life, seconds in itertools.product(LIVES, (-2.0, 2.0)):
        machine = ProxyMachine()
        try:
            machine.ask_again_at_the_end(target, USERS[0], life, weather, seconds)
            machine.time_passes(5.0)
            assert machine.written
            machine.every_answer_was_right()
        finally:
            machine.teardown()
