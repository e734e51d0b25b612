from __future__ import annotations

import itertools

import pytest

from imdsproxy.protocol.failures import DEFAULT_RETRIED, FailureRules, Verdict
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Request, Response, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.upstream.retry import RetryRules, next_delay, retry_after

RULES = RetryRules()
IDENTITY = BudgetClass.IDENTITY


def response(status: int, told: bytes | None = None, date: bytes | None = None) -> Response:
    fields = ((b"retry-after", told), (b"date", date))
    return Response(status, tuple((name, value) for name, value in fields if value is not None), b"{}")


def judged(result: Response | Failure, retried: frozenset[int] = DEFAULT_RETRIED) -> Verdict:
    target = read_target(b"/metadata/instance/compute")
    assert isinstance(target, Target)
    return FailureRules(retried).judge(Request("GET", target), result)


def answer(status: int, told: bytes | None = None) -> Verdict:
    return judged(response(status, told))


def failure(kind: FailureKind) -> Verdict:
    return judged(Failure(kind, "It failed."))


def pauses(result: Verdict, rules: RetryRules = RULES) -> list[float]:
    """Return the pauses of a request whose tries all end alike and take no time."""
    given: list[float] = []
    for attempt in itertools.count(1):
        delay = next_delay(result, attempt, sum(given), rules)
        if delay is None:
            return given
        given.append(delay)
    raise AssertionError


def test_retried_statuses_are_those_of_the_contract() -> None:
    assert frozenset({410, 429, 500, 502, 503, 504}) == DEFAULT_RETRIED


@pytest.mark.parametrize("status", sorted(DEFAULT_RETRIED))
def test_pauses_double_up_to_ten_seconds_and_the_last_attempt_is_at_seventy(status: int) -> None:
    assert pauses(answer(status)) == [1, 2, 4, 8, 10, 10, 10, 10, 10, 5]


@pytest.mark.parametrize("status", [200, 204, 301, 304, 400, 401, 403, 404, 405, 408, 501, 505])
def test_any_other_status_is_final(status: int) -> None:
    assert next_delay(answer(status), 1, 0, RULES) is None
    assert next_delay(answer(status, b"1"), 1, 0, RULES) is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FailureKind.UNREACHABLE, [1, 2, 2]),
        (FailureKind.RESET, [1, 2, 2]),
        (FailureKind.UNREADABLE, [1, 2, 2]),
        (FailureKind.SILENT, [1, 2, 2]),
        (FailureKind.UNEXPECTED, [1, 2, 2]),
        (FailureKind.TIMEOUT, []),
        (FailureKind.TOO_LARGE, []),
        (FailureKind.LOOP, []),
        (FailureKind.INTERNAL, []),
    ],
)
def test_unreachable_or_unreadable_upstream_is_given_up_after_five_seconds(
    kind: FailureKind, expected: list[float]
) -> None:
    assert pauses(failure(kind)) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (RetryRules(base=3, limit=20), [3, 6, 10, 1]),
        (RetryRules(base=0.5, limit=2), [0.5, 1, 0.5]),
        (RetryRules(limit=0), []),
        (RetryRules(limit=0.25), [0.25]),
    ],
)
def test_pauses_follow_the_users_rules(rules: RetryRules, expected: list[float]) -> None:
    assert pauses(answer(503), rules) == expected


def test_retry_max_bounds_retries_of_an_unreachable_upstream() -> None:
    assert pauses(failure(FailureKind.RESET), RetryRules(limit=2)) == [1, 1]


def test_first_pause_may_be_longer_than_ten_seconds() -> None:
    assert next_delay(answer(503), 1, 0, RetryRules(base=20)) == 20


def test_only_the_users_statuses_are_retried() -> None:
    assert next_delay(judged(response(404), frozenset({404})), 1, 0, RULES) == 1
    assert next_delay(judged(response(503), frozenset({404})), 1, 0, RULES) is None


@pytest.mark.parametrize(
    ("elapsed", "delay"), [(0, 8), (60, 8), (62, 8), (65, 5), (69.5, 0.5), (70, None), (70.1, None), (500, None)]
)
def test_time_spent_counts_against_the_limit(elapsed: float, delay: float | None) -> None:
    assert next_delay(answer(410), 4, elapsed, RULES) == delay


@pytest.mark.parametrize(
    ("told", "elapsed", "delay"),
    [
        (b"3", 0, 3),
        (b"30", 0, 30),
        (b"70", 0, 70),
        (b"70", 0.5, None),
        (b"71", 0, None),
        (b"5", 66, None),
        (b"5", 65, 5),
        (b"0", 0, 1),
        (b"-1", 0, 1),
        (b"soon", 0, 1),
        (b"Mon, 11 Apr 2026 22:26:58 GMT", 0, 1),
    ],
)
@pytest.mark.parametrize("status", [410, 429, 503])
def test_retry_after_of_imds_replaces_the_backoff(
    status: int, told: bytes, elapsed: float, delay: float | None
) -> None:
    assert next_delay(answer(status, told), 1, elapsed, RULES) == delay


@pytest.mark.parametrize(
    ("status", "budget", "delay"),
    [
        (500, IDENTITY, 1),
        (503, IDENTITY, 1),
        (500, BudgetClass.GENERAL, 0.1),
        (429, IDENTITY, 0.1),
        (410, IDENTITY, 0.1),
    ],
)
def test_identity_pauses_at_least_a_second_after_a_500(status: int, budget: BudgetClass, delay: float) -> None:
    assert next_delay(answer(status), 1, 0, RetryRules(base=0.1), budget) == delay


def test_identity_pause_does_not_exceed_the_limit() -> None:
    assert next_delay(answer(500), 1, 69.5, RULES, IDENTITY) == 0.5


def test_pauses_stay_finite_after_any_number_of_attempts() -> None:
    assert next_delay(answer(503), 100_000, 0, RULES) == 10


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"", None),
        (b" ", None),
        (b"5", 5),
        (b" 5 ", 5),
        (b"005", 5),
        (b"0", 0),
        (b"3600", 3600),
        (b"3601", 3600),
        (b"99999999999999999999", 3600),
        (b"+5", None),
        (b"-5", None),
        (b"5.5", None),
        (b"1e3", None),
        (b"5, 6", None),
        (b"\xb2", None),
        ("٣".encode(), None),
        (b"Mon, 11 Apr 2026 22:26:58 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_up_to_an_hour(value: bytes | None, seconds: float | None) -> None:
    assert retry_after(response(429, value)) == seconds


def test_retry_after_of_any_length_is_read() -> None:
    assert retry_after(response(429, b"9" * 5_000)) in (None, 3600)


def test_silence_of_a_known_upstream_is_retried_to_the_limit_and_a_refusal_is_not() -> None:
    assert next_delay(failure(FailureKind.SILENT), 3, 20.0, RULES, known=True) == 4.0
    assert next_delay(failure(FailureKind.SILENT), 3, 20.0, RULES) is None
    assert next_delay(failure(FailureKind.UNREACHABLE), 3, 20.0, RULES, known=True) is None


DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("told", "date", "seconds"),
    [
        (b"Sun, 06 Nov 1994 08:49:42 GMT", DATE, 5),
        (b"Sunday, 06-Nov-94 08:49:42 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", 5),
        (b"Sun Nov  6 08:49:42 1994", DATE, 5),
        (b"Mon, 07 Nov 1994 08:49:37 GMT", DATE, 3600),
        (b"Sun, 06 Nov 1994 08:49:36 GMT", DATE, 0),
        (b"Sun, 06 Nov 1994 08:49:42 GMT", None, None),
        (b"Sun, 06 Nov 1994 08:49:42 GMT", b"yesterday", None),
        (b"Sun, 06 Nov 1994 08:49:42 CET", DATE, None),
        (b"Sun, 31 Nov 1994 08:49:42 GMT", DATE, None),
        (b"5", b"yesterday", 5),
    ],
)
def test_retry_after_date_is_read_against_the_answers_date(
    told: bytes, date: bytes | None, seconds: float | None
) -> None:
    assert retry_after(response(429, told, date)) == seconds
    if seconds is not None and 0 < seconds <= RULES.limit:
        assert next_delay(judged(response(429, told, date)), 1, 0, RULES) == seconds
