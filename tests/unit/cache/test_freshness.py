from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from imdsproxy.cache.freshness import Entry, Freshness, Plan, aged_by_wait, lookup, make_entry, plan
from imdsproxy.policy.decisions import Cache, Lifetimes
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.messages import Request, Response, Target
from imdsproxy.protocol.target import read_target

SENT = 1_000.0
FRESH, REVALIDATE, ON_ERROR, MISS = Freshness.FRESH, Freshness.REVALIDATE, Freshness.ON_ERROR, Freshness.MISS
OK = Response(200, ((b"content-type", b"application/json"),), b"{}")
TOKEN = "/metadata/identity/oauth2/token"


def default(path: str) -> Lifetimes:
    """Return the lifetimes that the default policy has for a path."""
    return by(Policy(), path)


def by(policy: Policy, path: str) -> Lifetimes:
    target = read_target(path.encode())
    assert isinstance(target, Target)
    decision = policy.decide(Request("GET", target, metadata=True))
    assert isinstance(decision, Cache)
    return decision.lifetimes


def token(life: int) -> Response:
    return Response(200, (), b'{"access_token":"x","expires_in":"%d"}' % life)


def kept(response: Response, lifetimes: Lifetimes, *, now: float = SENT) -> Entry:
    entry = make_entry(response, lifetimes, SENT, now)
    assert entry is not None
    return entry


def at(entry: Entry | None, age: float) -> Freshness:
    return lookup(entry, SENT + age)


# The documented default policy as a client meets it: at each age the first or the last moment of a state.
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "/metadata/versions",
            {0: FRESH, 3599.9: FRESH, 3600: ON_ERROR, 3600 + 86399.9: ON_ERROR, 3600 + 86400: MISS},
        ),
        (
            "/metadata/instance/compute/vmId",
            {0: FRESH, 299.9: FRESH, 300: REVALIDATE, 599.9: REVALIDATE, 600: ON_ERROR, 3899.9: ON_ERROR, 3900: MISS},
        ),
        (
            "/metadata/instance",
            {0: FRESH, 59.9: FRESH, 60: REVALIDATE, 119.9: REVALIDATE, 120: ON_ERROR, 3659.9: ON_ERROR, 3660: MISS},
        ),
        (
            "/metadata/instance/network",
            {0: FRESH, 29.9: FRESH, 30: REVALIDATE, 59.9: REVALIDATE, 60: ON_ERROR, 3629.9: ON_ERROR, 3630: MISS},
        ),
        (
            "/metadata/loadbalancer",
            {0: FRESH, 29.9: FRESH, 30: REVALIDATE, 59.9: REVALIDATE, 60: ON_ERROR, 3629.9: ON_ERROR, 3630: MISS},
        ),
        ("/metadata/attested/document", {0: FRESH, 59.9: FRESH, 60: MISS}),
        ("/metadata/identity/info", {0: FRESH, 299.9: FRESH, 300: ON_ERROR, 3899.9: ON_ERROR, 3900: MISS}),
        ("/metadata/scheduledevents", {0: FRESH, 0.9: FRESH, 1: MISS}),
    ],
)
def test_lookup_follows_the_default_policy_at_each_deadline(path: str, expected: dict[float, Freshness]) -> None:
    entry = kept(OK, default(path))
    assert {age: at(entry, age) for age in expected} == expected


# "half its remaining life, at most `TOKEN_FRESH` | until 5 minutes before it expires | the same 5 minutes, never past"
@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (86_400, {0: FRESH, 3_599.9: FRESH, 3_600: REVALIDATE, 86_099.9: REVALIDATE, 86_100: MISS, 86_400: MISS}),
        (7_300, {3_599.9: FRESH, 3_600: REVALIDATE}),
        (3_600, {0: FRESH, 1_799.9: FRESH, 1_800: REVALIDATE, 3_299.9: REVALIDATE, 3_300: MISS}),
        (600, {0: FRESH, 299.9: FRESH, 300: MISS}),
        (400, {0: FRESH, 99.9: FRESH, 100: MISS}),
        (301, {0: FRESH, 0.9: FRESH, 1: MISS}),
    ],
)
def test_token_deadlines_are_half_life_one_hour_and_five_minutes_before_expiry(
    life: int, expected: dict[float, Freshness]
) -> None:
    entry = kept(token(life), default(TOKEN))
    assert {age: at(entry, age) for age in expected} == expected


@pytest.mark.parametrize(
    ("setting", "seconds", "expected"),
    [
        ("ttl", 60, {59.9: FRESH, 60: REVALIDATE, 119.9: REVALIDATE, 120: ON_ERROR, 3_299.9: ON_ERROR, 3_300: MISS}),
        ("ttl", 90_000, {1_799.9: FRESH, 1_800: REVALIDATE, 3_299.9: REVALIDATE, 3_300: MISS}),
        ("stale_if_error", 90_000, {1_799.9: FRESH, 1_800: REVALIDATE, 3_299.9: REVALIDATE, 3_300: MISS}),
    ],
)
def test_setting_can_only_shorten_the_use_of_a_token(
    setting: str, seconds: float, expected: dict[float, Freshness]
) -> None:
    rules = {TOKEN: seconds}
    policy = Policy(ttl=rules) if setting == "ttl" else Policy(stale_if_error=rules)
    entry = kept(token(3_600), by(policy, TOKEN))
    assert {age: at(entry, age) for age in expected} == expected


@pytest.mark.parametrize(
    ("life", "late", "is_kept"),
    [
        (300, 0, False),
        (299, 0, False),
        (0, 0, False),
        (301, 0, True),
        (301, 1, False),
        (86_400, 86_099, True),
        (86_400, 86_100, False),
        (86_400, 100_000, False),
    ],
)
def test_token_with_under_five_minutes_to_live_is_not_stored(life: int, late: float, is_kept: bool) -> None:
    assert (make_entry(token(life), default(TOKEN), SENT, SENT + late) is not None) is is_kept


@pytest.mark.parametrize("body", [b"", b"{}", b'{"access_token":"x"}', b'{"access_token":"x","expires_in":"-1"}'])
def test_unreadable_token_is_not_stored(body: bytes) -> None:
    assert make_entry(Response(200, (), body), default(TOKEN), SENT, SENT) is None


@pytest.mark.parametrize(
    ("age", "left"), [(0, "3600"), (0.5, "3599"), (1, "3599"), (1_800, "1800"), (3_299.9, "300"), (9_999, "0")]
)
def test_served_token_has_its_remaining_life(age: float, left: str) -> None:
    entry = kept(token(3_600), default(TOKEN))
    assert json.loads(entry.body(SENT + age)) == {"access_token": "x", "expires_in": left}
    assert entry.expires_at == SENT + 3_600


def test_response_time_shortens_the_lifetime() -> None:
    entry = kept(token(3_600), default(TOKEN), now=SENT + 9.5)
    assert json.loads(entry.body(SENT + 9.5))["expires_in"] == "3590"
    assert make_entry(OK, default("/metadata/scheduledevents"), SENT, SENT + 1) is None
    assert make_entry(OK, default("/metadata/attested/document"), SENT, SENT + 59.9) is not None


TOKEN_LIFETIMES = default("/metadata/identity/oauth2/token")


@pytest.mark.parametrize(("took", "left"), [(0, "86400"), (0.99, "86400"), (1, "86399"), (8.5, "86392"), (1e6, "0")])
def test_aged_by_wait_subtracts_whole_seconds_from_a_token(took: float, left: str) -> None:
    assert json.loads(aged_by_wait(token(86400), TOKEN_LIFETIMES, took).body)["expires_in"] == left


@pytest.mark.parametrize(
    ("response", "lifetimes"),
    [
        (token(86400), Lifetimes(fresh=60)),
        (Response(400, (), token(86400).body), TOKEN_LIFETIMES),
        (Response(200, (), b"no token"), TOKEN_LIFETIMES),
    ],
)
def test_aged_by_wait_returns_other_answers_unchanged(response: Response, lifetimes: Lifetimes) -> None:
    assert aged_by_wait(response, lifetimes, 8) is response


def test_other_body_is_served_unchanged() -> None:
    entry = kept(OK, default("/metadata/instance"))
    assert entry.body(SENT + 50) is OK.body
    assert entry.expires_at is None


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("path", ["/metadata/instance", "/metadata/versions", TOKEN, "/metadata/scheduledevents"])
def test_400_and_404_are_remembered_for_the_negative_lifetime_and_never_stale(status: int, path: str) -> None:
    entry = kept(Response(status, (), b"{}"), default(path))
    assert [at(entry, age) for age in (0, 4.9, 5, 60)] == [FRESH, FRESH, MISS, MISS]
    assert entry.token is None


@pytest.mark.parametrize("negative", [0.0, -5.0])
def test_negative_lifetime_of_0_remembers_nothing(negative: float) -> None:
    lifetimes = replace(default("/metadata/instance"), negative=negative)
    assert make_entry(Response(404, (), b""), lifetimes, SENT, SENT) is None


@pytest.mark.parametrize(
    "status", [201, 202, 204, 206, 301, 302, 304, 401, 403, 405, 408, 410, 429, 500, 502, 503, 504, 599]
)
@pytest.mark.parametrize("path", ["/metadata/instance", TOKEN])
def test_any_other_status_is_not_stored(status: int, path: str) -> None:
    assert make_entry(replace(token(86_400), status=status), default(path), SENT, SENT) is None


@pytest.mark.parametrize("lifetimes", [Lifetimes(), Lifetimes(-1.0), Lifetimes(-9.0, -9.0, -9.0)])
def test_make_entry_returns_none_without_a_lifetime(lifetimes: Lifetimes) -> None:
    assert make_entry(OK, lifetimes, SENT, SENT) is None


def test_no_entry_is_a_miss() -> None:
    assert lookup(None, SENT) is MISS


@pytest.mark.parametrize(("age", "whole"), [(-1, 0), (0, 0), (0.9, 0), (1, 1), (59.99, 59), (3600, 3600)])
def test_age_is_in_whole_seconds_since_the_request_was_sent(age: float, whole: int) -> None:
    assert kept(OK, default("/metadata/instance")).age(SENT + age) == whole


def test_entry_is_frozen() -> None:
    entry = kept(OK, default("/metadata/instance"))
    with pytest.raises(FrozenInstanceError):
        entry.fresh_until = math.inf  # type: ignore[misc]


def test_entry_is_a_miss_from_its_last_deadline_on() -> None:
    entry = kept(OK, Lifetimes(10, 20, 15))
    assert entry.gone_at == SENT + 30
    assert [at(entry, age) for age in (9, 10, 29, 30)] == [FRESH, REVALIDATE, REVALIDATE, MISS]


def test_size_is_at_least_the_bytes_of_the_entry() -> None:
    small = kept(Response(200, (), b""), Lifetimes(10)).size
    assert kept(Response(200, (), b"x" * 10_000), Lifetimes(10)).size >= small + 10_000
    assert kept(Response(200, ((b"x-long", b"x" * 10_000),), b""), Lifetimes(10)).size >= small + 10_006
    long_token = Response(200, (), b'{"access_token":"%b","expires_in":"3600"}' % (b"x" * 10_000))
    # The answer as it came, and its two parts around the digits.
    assert kept(long_token, default(TOKEN)).size >= small + 20_000


@pytest.mark.parametrize(
    ("freshness", "healthy", "failing"),
    [
        (FRESH, Plan.SERVE, Plan.SERVE),
        (REVALIDATE, Plan.SERVE_AND_REFRESH, Plan.SERVE_AND_REFRESH),
        (ON_ERROR, Plan.FETCH_OR_STALE, Plan.SERVE_AND_REFRESH),
        (MISS, Plan.FETCH, Plan.FETCH),
    ],
)
def test_plan_follows_from_freshness_and_health(freshness: Freshness, healthy: Plan, failing: Plan) -> None:
    assert plan(freshness, failing=False) is healthy
    assert plan(freshness, failing=True) is failing
