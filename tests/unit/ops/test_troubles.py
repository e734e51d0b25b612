"""Each trouble begins once and ends once, with its figures."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Iterable

import pytest

from imdsproxy.ops.budget_troubles import SETTLES
from imdsproxy.ops.episodes import FORGOTTEN_AFTER, Event
from imdsproxy.ops.imds_troubles import THROTTLING_SETTLES
from imdsproxy.ops.imds_words import LONGEST_WORDS, words_of
from imdsproxy.ops.token_names import token_name
from imdsproxy.ops.token_troubles import MOST, MOST_NEVER_HELD, PATIENCE
from imdsproxy.ops.trouble_log import TroubleLog
from imdsproxy.ops.troubles import DESCRIPTORS_SETTLE, EVICTIONS_SETTLE, MEMORY_SETTLES, Troubles
from imdsproxy.protocol.messages import BudgetClass, Headers, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import UpstreamAttempt
from imdsproxy.testing.clock import FakeClock
from tests import virtual
from tests.targets import INSTANCE, TOKEN, target_of
from tests.virtual import VirtualClock

IDENTITY = "e0000000-0000-4000-8000-00000000c111"
SOME = Peer(user=1000, process=7)
FORBIDDEN = json.dumps({"error": "forbidden", "error_description": f"Identity {IDENTITY.upper()} not assigned"})
PROXIED: Headers = ((b"cache-status", b"imdsproxy; detail=budget"),)


def attempt(
    status: str | None = "200",
    *,
    endpoint: str = "instance",
    text: str = INSTANCE,
    client: Peer = SOME,
    body: str = "{}",
    headers: Headers = (),
    failure: str | None = None,
    budget: BudgetClass = BudgetClass.GENERAL,
) -> UpstreamAttempt:
    digits = status is not None and status.isdigit()
    response = Response(int(status), headers, body.encode()) if status is not None and digits else None
    if failure is None and status is not None and (not digits or int(status) >= 429 or status == "410"):
        failure = f"status {status}"
    return UpstreamAttempt(
        endpoint, budget, 0.0, status, client=client, target=target_of(text), failure=failure, response=response
    )


def token(status: str = "200", name: str = "", body: str = "{}", failure: str | None = None) -> UpstreamAttempt:
    return attempt(status, endpoint="token", text=f"{TOKEN}{name}", body=body, failure=failure)


class Watch:
    """The troubles, and the lines so far: `+` for a beginning, `-` for an end."""

    def __init__(self) -> None:
        self.troubles = Troubles(1000)
        self.events: list[Event] = []

    def see(self, now: float, *attempts: UpstreamAttempt, life: float | None = None) -> Watch:
        for each in attempts:
            self._keep(self.troubles.observe_attempt(each, life, now))
        return self

    def evict(self, now: float) -> None:
        self._keep(self.troubles.observe_eviction(3, now))

    def refuse(self, now: float, detail: str) -> Watch:
        self._keep(self.troubles.observe_refusal(detail, "someone", now))
        return self

    def wait(self, now: float) -> Watch:
        self._keep(self.troubles.settle(now))
        return self

    def _keep(self, events: Iterable[Event]) -> None:
        self.events += events

    @property
    def lines(self) -> list[str]:
        return [f"{'-' if event.over else '+'} {event.message.partition(';')[0]}" for event in self.events]


@pytest.fixture
def watch() -> Watch:
    return Watch()


class TestImds:
    def test_failure_and_recovery_are_one_line_each(self, watch: Watch) -> None:
        watch.see(0.0, attempt())
        watch.see(1.0, attempt("upstream-unreachable", failure="no route"), attempt("upstream-unreachable"))
        watch.see(5.0, attempt("503"), attempt("500", endpoint="versions"))
        watch.see(74.25, attempt(endpoint="versions"))
        assert watch.lines == ["+ IMDS fails", "- IMDS answers again"]
        assert watch.events[0].fields == {"endpoint": "all", "status": "upstream-unreachable", "because": "no route"}
        assert watch.events[1].fields == {
            "endpoint": "all",
            "seconds": 73.2,
            "failures": 4,
            "because": "status 500",
        }
        assert watch.troubles.due == math.inf

    def test_failing_endpoint_is_not_back_because_another_answers(self, watch: Watch) -> None:
        for now in range(10):
            watch.see(float(now), attempt("500", endpoint="attested"), attempt())
        watch.see(10.0, attempt(endpoint="attested"))
        assert watch.lines == ["+ IMDS fails", "- IMDS answers again"]
        assert [event.fields["endpoint"] for event in watch.events] == ["attested", "attested"]

    def test_outage_is_logged_although_one_endpoint_fails_for_long(self, watch: Watch) -> None:
        watch.see(0.0, attempt("500", endpoint="attested"))
        watch.see(1.0, attempt("upstream-silent"))
        assert [event.fields["endpoint"] for event in watch.events] == ["attested", "all"]

    def test_endpoint_that_is_not_asked_any_more_is_forgotten(self, watch: Watch) -> None:
        watch.see(0.0, attempt("500", endpoint="attested"))
        assert watch.troubles.due == FORGOTTEN_AFTER
        watch.wait(FORGOTTEN_AFTER)
        assert watch.lines == ["+ IMDS fails", "- IMDS is no longer asked"]

    def test_update_has_lines_of_its_own(self, watch: Watch) -> None:
        watch.see(0.0, attempt("410"), attempt("410")).see(70.0, attempt())
        assert watch.lines == ["+ IMDS is being updated and answers 410", "- IMDS answers again after its update"]
        assert watch.events[1].fields == {"seconds": 70.0, "failures": 2}

    def test_429_within_the_budget_is_somebody_elses_doing(self, watch: Watch) -> None:
        watch.see(0.0, attempt(), attempt(), attempt(), attempt())
        watch.see(0.5, attempt("429", body='{"error":"Too many requests"}'))
        fields = watch.events[0].fields
        assert fields["sent_in_last_second"] == 5
        assert str(fields["because"]).startswith("another program on this VM spends")
        assert fields["imds"] == "status 429: Too many requests"

    def test_429_beyond_what_imds_allows_is_the_proxys_own_doing(self, watch: Watch) -> None:
        watch.see(0.0, *[attempt()] * 5).see(0.5, attempt("429"))
        assert "lower IMDSPROXY_BUDGET_REQUESTS" in str(watch.events[0].fields["because"])

    def test_throttling_with_answers_between_is_one_pair_of_lines(self, watch: Watch) -> None:
        for now in range(30):
            watch.see(float(now), attempt("429"), attempt())
        assert watch.lines == ["+ IMDS throttles this VM and answers 429"]
        assert watch.troubles.due == 29.0 + THROTTLING_SETTLES
        watch.wait(39.0)
        assert watch.lines[1:] == ["- IMDS throttles no longer"]
        assert watch.events[1].fields == {"seconds": 29.0, "failures": 30}

    def test_429_of_a_proxy_before_imds_says_nothing_about_imds(self, watch: Watch) -> None:
        watch.see(0.0, attempt("429", headers=PROXIED))
        assert watch.lines == []

    @pytest.mark.parametrize("status", ["recalled", "loop"])
    def test_attempt_that_never_reached_imds_says_nothing_about_it(self, status: str, watch: Watch) -> None:
        assert watch.see(0.0, attempt(status, endpoint="token", text=TOKEN)).lines == []

    def test_404_for_a_token_is_the_tokens_trouble_alone(self, watch: Watch) -> None:
        watch.see(0.0, token("404", failure="status 404"))
        assert watch.lines == ["+ access token cannot be obtained"]


class TestBudget:
    def test_exhaustion_names_who_asked_most_and_how_many_were_refused(self, watch: Watch) -> None:
        busy, other = Peer(user=1, process=1), Peer(address="10.0.0.1")
        watch.see(0.0, *[attempt(client=busy)] * 4, attempt(client=other))
        watch.see(1.0, attempt(None, client=other), *[attempt(None, client=busy)] * 3, attempt(client=busy))
        assert watch.lines == ["+ budget exhausted"]
        assert watch.events[0].fields == {
            "class": "general",
            "client": "10.0.0.1",
            "asked_most": "user 1, process 1",
            "asked": 4,
        }
        assert watch.troubles.due == 1.0 + SETTLES
        watch.see(2.5, attempt(None, client=other)).wait(2.5 + SETTLES)
        assert watch.lines[1:] == ["- budget no longer exhausted"]
        assert watch.events[1].fields == {
            "class": "general",
            "seconds": 1.5,
            "refused": 5,
            "asked_most": "user 1, process 1",
            "asked": 4,
        }

    def test_classes_have_their_own_lines(self, watch: Watch) -> None:
        watch.see(0.0, attempt(None), attempt(None, budget=BudgetClass.IDENTITY)).wait(60.0)
        assert [event.fields["class"] for event in watch.events] == ["general", "identity"] * 2

    @pytest.mark.parametrize(("pause", "asked"), [(29.0, 3), (31.0, 3), (95.0, 1)])
    def test_only_the_last_minute_counts_before_the_first_refusal(self, pause: float, asked: int, watch: Watch) -> None:
        watch.see(30.0, attempt(), attempt()).see(30.0 + pause, attempt(None))
        assert watch.events[0].fields["asked"] == asked


class TestTokens:
    def test_renewal_that_fails_has_imds_words_and_the_remaining_life(self, watch: Watch) -> None:
        name = f"&client_id={IDENTITY}"
        watch.see(0.0, token(name=name))
        watch.see(100.0, *[token("403", name, FORBIDDEN)] * 3, life=1799.9)
        assert watch.lines == ["+ access token cannot be renewed"]
        named = token_name(target_of(TOKEN + name))
        who = {"audience": named.audience, "identity": named.identity}
        because = "IMDS answered with status 403: forbidden: Identity [identity] not assigned"
        assert watch.events[0].fields == {**who, "status": "403", "because": because, "expires_in": 1799}
        watch.see(160.0, token(name=name))
        assert watch.lines[1:] == ["- access token is renewed again"]
        assert watch.events[1].fields == {**who, "seconds": 60.0, "failures": 3, "because": because}

    def test_token_that_was_never_obtained_is_called_so(self, watch: Watch) -> None:
        watch.see(0.0, token("400")).see(1.0, token())
        assert watch.lines == ["+ access token cannot be obtained", "- access token obtained"]
        assert "expires_in" not in watch.events[0].fields

    def test_token_nothing_asks_for_any_more_is_forgotten(self, watch: Watch) -> None:
        watch.see(0.0, token("400")).wait(FORGOTTEN_AFTER)
        assert watch.lines[1:] == ["- access token is no longer requested"]

    @pytest.mark.parametrize("status", ["500", "429", "upstream-timeout", "410"])
    def test_failure_of_imds_is_the_tokens_only_if_it_lasts(self, status: str, watch: Watch) -> None:
        tokens = Watch()
        tokens.see(0.0, token(status), life=600.0).see(PATIENCE - 1, token(status), life=600.0)
        assert not [line for line in tokens.lines if "access token" in line]
        tokens.see(PATIENCE, token(status), life=530.0)
        assert "+ access token cannot be renewed" in tokens.lines
        watch.see(0.0, token(status)).see(60.0, token()).see(PATIENCE, token(status))
        assert not [line for line in watch.lines if "access token" in line], "it had answered between"

    def test_clients_cannot_fill_the_log_with_tokens_that_were_never_obtained(self, watch: Watch) -> None:
        for number in range(1000):
            watch.see(0.0, token("400", f"{number}"))
        assert len(watch.events) == MOST_NEVER_HELD
        watch.see(1.0, token("403", "OfAClient"), life=60.0)
        assert len(watch.events) == MOST_NEVER_HELD + 1, "one that is in use is always reported"

    def test_number_of_followed_tokens_is_bounded(self, watch: Watch) -> None:
        for number in range(MOST + 10):
            watch.see(0.0, token("403", f"{number}"), life=60.0)
        assert len(watch.events) == MOST
        for number in range(MOST):
            watch.see(1.0, token(name=f"{number}"))
        watch.see(2.0, token("403", f"{MOST + 1}"), life=60.0)
        assert len(watch.events) == 2 * MOST + 1


class TestWords:
    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("", "IMDS answered with status 400"),
            ("not json", "IMDS answered with status 400"),
            ("[" * 100_000, "IMDS answered with status 400"),
            ('"text"', "IMDS answered with status 400"),
            ('{"error": 3, "error_description": ""}', "IMDS answered with status 400"),
            ('{"access_token": "secret"}', "IMDS answered with status 400"),
            ('{"error": "a", "error_description": "b"}', "IMDS answered with status 400: a: b"),
        ],
    )
    def test_only_the_two_texts_of_an_error_are_shown(self, body: str, words: str) -> None:
        assert words_of(token("400", body=body)) == words

    @pytest.mark.parametrize(
        ("told", "shown"),
        [
            ("eyJ0eXAi.eyJhdWQi.c2ln is not accepted", "[removed] is not accepted"),
            ("bad assertion eyJ0eXAiOiJKV1Qi", "bad assertion [removed]"),
            (f"key {'aB3_' * 10}!", "key [removed]!"),
            ("Trace ID: 02aab8a4-74ef-476e-8182-f6d2ba4166a6", "Trace ID: 02aab8a4-74ef-476e-8182-f6d2ba4166a6"),
            ("https://management.azure.com/ was not found", "https://management.azure.com/ was not found"),
        ],
    )
    def test_what_looks_like_a_token_is_removed(self, told: str, shown: str) -> None:
        words = words_of(token("400", body=json.dumps({"error": "e", "error_description": told})))
        assert words == f"IMDS answered with status 400: e: {shown}"

    def test_they_are_short(self) -> None:
        assert len(words_of(token("400", body=json.dumps({"error": "x y " * 1000})))) == LONGEST_WORDS

    def test_body_of_a_200_is_never_shown(self) -> None:
        unexpected = token(body='{"error": "secret"}', failure="unexpected")
        assert words_of(unexpected) == "unexpected"

    def test_attempt_without_a_target_has_words_too(self) -> None:
        assert words_of(UpstreamAttempt("token", BudgetClass.GENERAL, 0.0, "500", failure="bad")) == "bad"


class TestRoom:
    def test_evictions_are_one_pair_of_lines(self, watch: Watch) -> None:
        for now in range(30):
            watch.evict(float(now))
        watch.wait(29.0 + EVICTIONS_SETTLE)
        assert watch.lines == ["+ cache full", "- no more entries are evicted"]
        assert watch.events[0].fields == {"entries": 3, "max_bytes": 1000, "raise": "IMDSPROXY_CACHE_MAX_BYTES"}
        assert watch.events[1].fields == {"seconds": 29.0, "evicted": 30}

    def test_lack_of_descriptors_is_one_pair_of_lines(self, watch: Watch) -> None:
        watch.see(0.0, attempt("descriptors"), attempt("descriptors")).wait(DESCRIPTORS_SETTLE)
        assert watch.lines == ["+ limit of open files reached", "- requests to IMDS can be sent again"]
        assert watch.events[1].fields == {"seconds": 0.0, "failures": 2}

    def test_requests_refused_for_want_of_memory_are_one_pair_of_lines(self, watch: Watch) -> None:
        for now in range(30):
            watch.refuse(float(now), "memory").refuse(float(now), "method")
        watch.wait(29.0 + MEMORY_SETTLES)
        assert watch.lines == ["+ memory for requests used up", "- no more requests are refused for want of memory"]
        assert watch.events[0].fields == {"client": "someone"}
        assert watch.events[1].fields == {"seconds": 29.0, "refused": 30}


class TestLog:
    def test_end_that_only_time_brings_is_written_by_a_timer(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scenario() -> None:
            log = TroubleLog(Troubles(1000), VirtualClock(), lambda _target: 60.0)
            log.observe_attempt(attempt(None))
            await asyncio.sleep(5.0)
            log.observe_attempt(attempt(None))
            log.observe_attempt(token("403"))
            await asyncio.sleep(SETTLES + 1)
            log.observe_eviction(3)
            log.observe_refusal("memory", "someone")
            log.close()
            log.close()
            await asyncio.sleep(2 * FORGOTTEN_AFTER)

        with caplog.at_level(logging.INFO):
            virtual.run(scenario())
        assert [(record.levelname, record.getMessage().partition(";")[0]) for record in caplog.records] == [
            ("WARNING", "budget exhausted"),
            ("WARNING", "access token cannot be renewed"),
            ("INFO", "budget no longer exhausted"),
            ("WARNING", "cache full"),
            ("WARNING", "memory for requests used up"),
        ]
        fields = [vars(record)["fields"] for record in caplog.records]
        assert (fields[1]["expires_in"], fields[2]["seconds"], fields[2]["refused"]) == (60, 5.0, 2)

    def test_without_an_event_loop_the_next_observation_brings_the_end(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = FakeClock()
        log = TroubleLog(Troubles(1000), clock, lambda _target: None)
        with caplog.at_level(logging.INFO):
            log.observe_attempt(attempt(None))
            clock.advance(SETTLES)
            log.observe_attempt(attempt())
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
