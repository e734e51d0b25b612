from __future__ import annotations

import pytest

from imdsproxy.protocol.failures import FailureRules, Verdict
from imdsproxy.protocol.messages import Failure, FailureKind, Request, Response, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.upstream.health import Health


def judged(result: Response | Failure) -> Verdict:
    target = read_target(b"/metadata/instance/compute")
    assert isinstance(target, Target)
    return FailureRules().judge(Request("GET", target), result)


def answer(status: int) -> Verdict:
    return judged(Response(status, (), b"{}"))


GONE, OK = answer(410), answer(200)
UNREACHABLE = judged(Failure(FailureKind.UNREACHABLE, "It cannot be reached.", sent=False))


def gone_for(first: object) -> Health:
    """Return the outage in which IMDS answered 410 to `first`."""
    health = Health()
    assert health.may_ask(first)
    health.learn(first, GONE, 0.0)
    return health


def test_every_fetch_may_send_before_the_first_answer() -> None:
    health = Health()
    assert all(health.may_ask(who) for who in ("one", "two"))
    assert (health.failing, health.gone, health.answered) == (False, None, False)


@pytest.mark.parametrize(
    ("result", "failing", "answered"),
    [
        (OK, False, True),
        (answer(304), True, False),
        (judged(Response(200, (), b"<html>")), True, False),
        (answer(400), False, True),
        (answer(404), False, True),
        (answer(405), False, True),
        (answer(410), True, False),
        (answer(429), True, False),
        (answer(500), True, False),
        (answer(503), True, False),
        (UNREACHABLE, True, False),
        (judged(Failure(FailureKind.TIMEOUT, "")), True, False),
    ],
)
def test_health_follows_the_last_answer(result: Verdict, failing: bool, answered: bool) -> None:
    health = Health()
    health.learn("one", result, 0.0)
    assert (health.failing, health.answered) == (failing, answered)


@pytest.mark.parametrize("result", [UNREACHABLE, GONE, answer(503)])
def test_answered_stays_true_after_a_failure(result: Verdict) -> None:
    health = Health()
    health.learn("one", OK, 0.0)
    health.learn("one", result, 0.0)
    assert health.answered


def test_only_the_probe_may_send_during_a_410() -> None:
    health = gone_for("one")
    assert health.gone is GONE
    assert [health.may_ask(who) for who in ("two", "one", "three", "one")] == [False, True, False, True]


def test_second_410_does_not_change_the_probe() -> None:
    health = gone_for("one")
    again = answer(410)
    health.learn("two", again, 0.0)
    assert health.gone is again
    assert [health.may_ask(who) for who in ("one", "two")] == [True, False]


def test_probe_is_compared_by_identity() -> None:
    class Empty:
        def __bool__(self) -> bool:
            return False

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    first, second = Empty(), Empty()
    health = gone_for(first)
    health.learn(second, GONE, 0.0)
    assert health.may_ask(first)
    assert not health.may_ask(second)


@pytest.mark.parametrize("who", ["one", "two"], ids=["the probe", "an earlier fetch"])
@pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 503])
def test_any_other_answer_ends_the_410_for_every_fetch(who: str, status: int) -> None:
    health = gone_for("one")
    health.learn(who, answer(status), 0.0)
    assert health.gone is None
    assert all(health.may_ask(asker) for asker in ("one", "two", "three"))


def test_missing_answer_does_not_end_the_410() -> None:
    health = gone_for("one")
    health.learn("one", UNREACHABLE, 0.0)
    assert health.gone is GONE
    assert [health.may_ask(who) for who in ("two", "one")] == [False, True]


def test_next_fetch_becomes_the_probe_when_the_probe_leaves() -> None:
    health = gone_for("one")
    health.leave("one")
    assert [health.may_ask(who) for who in ("two", "one", "two")] == [True, False, True]


def test_leave_of_another_fetch_does_not_change_the_probe() -> None:
    health = gone_for("one")
    health.leave("two")
    assert [health.may_ask(who) for who in ("two", "one")] == [False, True]


def test_first_fetch_of_a_new_outage_becomes_the_probe() -> None:
    health = gone_for("one")
    health.learn("one", OK, 0.0)
    health.learn("two", GONE, 0.0)
    assert [health.may_ask(who) for who in ("one", "two")] == [False, True]
