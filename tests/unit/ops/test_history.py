from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from imdsproxy.ops.attribution import Use
from imdsproxy.ops.history import OWN_REQUESTS, PERIODS, REFUSED, SENT, History, client_name
from imdsproxy.ops.pending_events import pending_by_type, read_events
from imdsproxy.ops.token_names import TokenName, token_name
from imdsproxy.protocol.messages import BudgetClass, Response
from imdsproxy.protocol.peer import UNKNOWN, Peer
from imdsproxy.records import UpstreamAttempt
from tests.targets import EVENTS, INSTANCE, TOKEN, target_of

NO_EVENTS = {"Freeze": 0, "Reboot": 0, "Redeploy": 0, "Preempt": 0, "Terminate": 0}
SOME = "e0000000-0000-4000-8000-00000000c111"


def attempt(
    status: str | None = "200",
    failure: str | None = None,
    *,
    endpoint: str = "instance",
    text: str = INSTANCE,
    client: Peer = UNKNOWN,
    body: bytes = b"{}",
) -> UpstreamAttempt:
    response = Response(int(status), (), body) if status and status.isdigit() else None
    return UpstreamAttempt(
        endpoint,
        BudgetClass.GENERAL,
        0.0,
        status,
        client=client,
        target=target_of(text),
        failure=failure,
        response=response,
    )


def begun(totals: Callable[[], Mapping[str, int]] = dict) -> History:
    """Return a history that began at 0."""
    history = History(totals)
    assert history.start(0.0) == history.start(1.0) == 0.0
    return history


def after(*attempts: tuple[UpstreamAttempt, float]) -> History:
    history = begun()
    for made, now in attempts:
        history.observe_attempt(made, now)
    return history


@pytest.mark.parametrize(
    ("attempts", "state", "since"),
    [
        ([], "unknown", 0.0),
        ([(attempt(), 1.0), (attempt(), 5.0)], "answering", 1.0),
        ([(attempt("404"), 1.0)], "answering", 1.0),
        ([(attempt("410", "status 410"), 1.0)], "updating", 1.0),
        ([(attempt("429", "status 429"), 1.0)], "throttling", 1.0),
        ([(attempt("500", "status 500"), 1.0), (attempt("503", "status 503"), 2.0)], "failing", 1.0),
        ([(attempt("upstream-timeout", "too slow"), 1.0)], "failing", 1.0),
        ([(attempt(), 1.0), (attempt("410", "gone"), 2.0), (attempt(), 4.0)], "answering", 4.0),
        ([(attempt(), 1.0), (attempt("recalled"), 2.0)], "answering", 1.0),
        ([(attempt(), 1.0), (attempt("loop", "a loop"), 2.0)], "answering", 1.0),
        ([(attempt(), 1.0), (attempt("descriptors", "no file"), 2.0)], "answering", 1.0),
        ([(attempt(), 1.0), (attempt(None), 2.0)], "answering", 1.0),
    ],
)
def test_state_of_imds_follows_its_answers(
    attempts: list[tuple[UpstreamAttempt, float]], state: str, since: float
) -> None:
    history = after(*attempts)
    assert (history.state, history.state_since(9.0)) == (state, since)


def test_last_success_and_last_failure_are_kept_side_by_side() -> None:
    history = after((attempt(), 1.0), (attempt("500", "x" * 1000), 2.0), (attempt(), 3.0))
    assert history.last_success == 3.0
    assert history.last_failure is not None
    assert (history.last_failure.at, history.last_failure.status) == (2.0, "500")
    assert history.last_failure.words == "x" * 300


def test_requests_and_refusals_are_counted_by_client() -> None:
    some, other = Peer(user=1000, process=7), Peer(address="10.0.0.9")
    history = begun()
    for client, refused in ((some, False), (some, True), (other, False)):
        history.count_request(client, refused=refused)
    assert history.clients.top(10) == (
        Use("user 1000, process 7", requests=2, refused=1),
        Use("10.0.0.9", requests=1),
    )


def test_attempts_are_counted_by_status_client_and_use_of_the_budget() -> None:
    some, other = Peer(user=1000, process=7), Peer(address="10.0.0.9")
    history = after(
        (attempt(client=some), 0.0),
        (attempt("500", "status 500", client=some), 16.0),
        (attempt(client=other), 16.0),
        (attempt(None, client=other), 16.0),
    )
    assert history.sent == 3
    assert history.refused == {"general": 1}
    assert history.statuses.totals(16.0) == {"200": 2, "500": 1}
    assert history.clients.top(10) == (Use("user 1000, process 7", 2), Use("10.0.0.9", 1))
    assert history.budget.rows(16.0)[-2:] == ({SENT: 1}, {SENT: 2, REFUSED: 1})


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (UNKNOWN, OWN_REQUESTS),
        (Peer(user=0, process=1), "user 0, process 1"),
        (Peer(user=1000), "user 1000"),
        (Peer(address="fd00::1"), "fd00::1"),
        (Peer(proxy="0123456789abcdef"), "unknown"),
    ],
)
def test_clients_are_named_by_user_process_or_address(peer: Peer, name: str) -> None:
    assert client_name(peer) == name


def test_answers_are_counted_in_the_period_of_the_last_count() -> None:
    totals: dict[str, int] = {}
    history = begun(lambda: totals)
    totals.update(hit=5)
    history.count_answers(0.5)
    assert not any(history.outcomes.rows(0.5)), "less than a second has passed"
    history.count_answers(14.0)
    totals.update(hit=8, miss=1)
    history.count_answers(600.0)
    rows = history.outcomes.rows(600.0)
    assert len(rows) == PERIODS
    assert [row for row in rows if row] == [{"hit": 8, "miss": 1}], "the pause follows the requests"
    history.count_all_answers(600.1)
    assert history.outcomes.totals(600.1) == {"hit": 8, "miss": 1}
    assert history.answers() == totals


TOKEN_ATTEMPTS = [
    ([("400", None)], {"default https://vault.azure.net": "IMDS answered with status 400"}),
    ([("500", "status 500")], {"default https://vault.azure.net": "status 500"}),
    ([("400", None), ("200", None)], {}),
    ([("400", None), ("recalled", None)], {"default https://vault.azure.net": "IMDS answered with status 400"}),
    ([("200", None), ("upstream-timeout", "too slow")], {"default https://vault.azure.net": "too slow"}),
]


@pytest.mark.parametrize(("attempts", "failures"), TOKEN_ATTEMPTS)
def test_token_failure_ends_with_the_next_success(
    attempts: list[tuple[str, str | None]], failures: Mapping[str, str]
) -> None:
    made = [(attempt(status, failure, endpoint="token", text=TOKEN), 1.0) for status, failure in attempts]
    assert {key: failed.failure.words for key, failed in after(*made).token_failures().items()} == failures


def test_only_the_latest_tokens_that_fail_are_kept() -> None:
    made = [
        (attempt("400", endpoint="token", text=f"/metadata/identity/oauth2/token?api-version=1&resource={number}"), 1.0)
        for number in range(70)
    ]
    assert [failed.name.audience for failed in after(*made).token_failures().values()] == [
        str(number) for number in range(6, 70)
    ]


def test_attempt_without_a_target_has_no_token_failure() -> None:
    history = begun()
    history.observe_attempt(UpstreamAttempt("token", BudgetClass.GENERAL, 0.0, "400"), 1.0)
    assert not history.token_failures()


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("resource=https://a", TokenName("https://a", "default")),
        (f"resource=https://a&client_id={SOME}", TokenName("https://a", "a1f265a7")),
        (f"resource=https://a&client_id={SOME.upper()}", TokenName("https://a", "a1f265a7")),
        ("resource=https://a&mi_res_id=/subscriptions/x", TokenName("https://a", "8126a7eb")),
        ("client_id=", TokenName("", "default")),
        (f"resource={'a' * 300}", TokenName("a" * 200, "default")),
    ],
)
def test_token_name_hides_the_identity(query: str, name: TokenName) -> None:
    assert token_name(target_of(f"/metadata/identity/oauth2/token?api-version=2018-02-01&{query}")) == name


def document(*events: Any, incarnation: Any = 1) -> bytes:
    return json.dumps({"DocumentIncarnation": incarnation, "Events": list(events)}).encode()


@pytest.mark.parametrize(
    ("body", "pending"),
    [
        (document(), NO_EVENTS),
        (document({"EventType": "Freeze"}, {"EventType": "Freeze"}), {**NO_EVENTS, "Freeze": 2}),
        (document({"EventType": "<b>"}, {"EventType": 1}, {}, "x"), {**NO_EVENTS, "other": 3}),
        (document(incarnation="1"), None),
        (b'{"DocumentIncarnation": 1, "Events": {}}', None),
        (b"[]", None),
        (b"", None),
        (b"[" * 100_000, None),
    ],
)
def test_pending_events_are_counted_by_type(body: bytes, pending: dict[str, int] | None) -> None:
    assert pending_by_type(body) == pending


def test_events_are_read_with_their_incarnation() -> None:
    assert read_events(document({"EventId": "a"}, incarnation=7)) == (7, ({"EventId": "a"},))


def test_pending_events_are_those_of_the_latest_answer() -> None:
    def asked(body: bytes, status: str = "200") -> UpstreamAttempt:
        return attempt(status, endpoint="scheduledevents", text=EVENTS, body=body)

    freeze = document({"EventType": "Freeze"})
    history = after((asked(freeze), 1.0), (asked(freeze), 2.0), (asked(b"{}"), 3.0), (asked(b"", "400"), 4.0))
    assert history.events_at == 2.0
    assert history.current_events(301.9) == {**NO_EVENTS, "Freeze": 1}
    assert history.current_events(302.0) is None, "it is no news"
    history.observe_attempt(asked(document()), 303.0)
    assert history.current_events(303.0) == NO_EVENTS
    assert begun().current_events(0.0) is None


def test_tables_are_bounded_for_any_clients_and_statuses() -> None:
    history = begun()
    for number in range(3000):
        text = f"/metadata/identity/oauth2/token?api-version=1&resource={number:0300}&client_id={number}"
        peer = Peer(address=f"{number:064}")
        status = str(200 + number % 400)
        history.observe_attempt(attempt(status, "w" * 5000, endpoint="token", text=text, client=peer), number * 1.0)
    assert _bytes(history) < 400_000


def _bytes(value: object, seen: set[int] | None = None) -> int:
    """Return the bytes of a value and of all that it refers to."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type) or callable(value):
        return 0
    seen.add(id(value))
    parts: list[object] = []
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif hasattr(value, "__dict__"):
        parts = [vars(value)]
    elif isinstance(value, tuple | list | deque):
        parts = [*value]
    else:
        parts = [getattr(value, name) for name in getattr(value, "__slots__", ())]
    return sys.getsizeof(value) + sum(_bytes(part, seen) for part in parts)
