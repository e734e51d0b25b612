"""No deadline is ever passed, and no token is stated to live longer than it does."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import assume, example, given
from hypothesis import strategies as st

from imdsproxy.cache.access_token import MARGIN, read_token
from imdsproxy.cache.freshness import Freshness, Plan, lookup, make_entry, plan
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Response

ORDER = [Freshness.FRESH, Freshness.EXPIRING, Freshness.REVALIDATE, Freshness.ON_ERROR, Freshness.MISS]


def ticks(low: float, high: float) -> st.SearchStrategy[float]:
    """Return moments in 1/64 s, which floats of this size add and subtract without rounding."""
    return st.integers(round(low * 64), round(high * 64)).map(lambda tick: tick / 64)


moments = ticks(0, 10_000_000)
spans = ticks(0, 200_000) | st.sampled_from([0.0, 1 / 64, 300.0, 3600.0])
signed = ticks(-1_000, 5_000)
lifetimes = st.builds(Lifetimes, fresh=signed, revalidate=signed, stale_if_error=signed, negative=signed)
of_tokens = st.builds(
    Lifetimes,
    fresh=st.just(math.inf) | ticks(0.25, 100_000),
    stale_if_error=st.just(math.inf) | ticks(0, 100_000),
    negative=st.just(5.0),
    token=st.sampled_from([True]),
)
lives = st.integers(0, 604_800) | st.integers(295, 605)


def token(life: int, *, quoted: bool = True) -> bytes:
    number = f'"{life}"' if quoted else str(life)
    return f'{{"access_token":"{life}","ext_expires_in":"{life}","expires_in":{number},"not_before":"{life}"}}'.encode()


@given(st.sampled_from([200, 400, 404]), lifetimes, moments, spans, spans)
def test_entry_is_never_used_past_its_lifetimes(
    status: int, given_lifetimes: Lifetimes, sent_at: float, took: float, age: float
) -> None:
    entry = make_entry(Response(status, (), b""), given_lifetimes, sent_at, sent_at + took)
    freshness = lookup(entry, sent_at + age)
    if status == 200:
        fresh = given_lifetimes.fresh
        bounds = {
            Freshness.FRESH: fresh,
            Freshness.REVALIDATE: fresh + given_lifetimes.revalidate,
            Freshness.ON_ERROR: fresh + given_lifetimes.stale_if_error,
        }
    else:
        bounds = {Freshness.FRESH: given_lifetimes.negative}
    if freshness is not Freshness.MISS:
        assert age < bounds[freshness]
    if entry is not None:
        assert took < max(bounds.values())
        assert (freshness is Freshness.MISS) is (age >= max(bounds.values()))


@given(lifetimes | of_tokens, lives, moments, st.lists(spans, min_size=2, max_size=8))
def test_freshness_never_improves_with_time(
    given_lifetimes: Lifetimes, life: int, sent_at: float, ages: list[float]
) -> None:
    entry = make_entry(Response(200, (), token(life)), given_lifetimes, sent_at, sent_at)
    expected = [ORDER.index(lookup(entry, sent_at + age)) for age in sorted(ages)]
    assert expected == sorted(expected)


@given(st.sampled_from([400, 404]), lifetimes | of_tokens, moments, spans)
def test_negative_answer_is_never_stale(status: int, given_lifetimes: Lifetimes, sent_at: float, age: float) -> None:
    entry = make_entry(Response(status, (), token(3600)), given_lifetimes, sent_at, sent_at)
    fresh = age < given_lifetimes.negative
    assert lookup(entry, sent_at + age) is (Freshness.FRESH if fresh else Freshness.MISS)


@given(st.integers(100, 599).filter(lambda status: status not in (200, 400, 404)), lifetimes | of_tokens, moments)
def test_no_other_status_is_stored(status: int, given_lifetimes: Lifetimes, sent_at: float) -> None:
    assert make_entry(Response(status, (), token(3600)), given_lifetimes, sent_at, sent_at) is None


@given(of_tokens, lives, moments, spans, spans)
@example(Lifetimes(math.inf, 0, math.inf, 5, token=True), 301, 0.0, 0.0, 1.0)
@example(Lifetimes(1.0, 0, 0.0, 5, token=True), 86_400, 0.0, 0.0, 86_100.0)
def test_token_is_never_served_in_its_last_five_minutes_or_past_the_settings(
    given_lifetimes: Lifetimes, life: int, sent_at: float, took: float, age: float
) -> None:
    entry = make_entry(Response(200, (), token(life)), given_lifetimes, sent_at, sent_at + took)
    freshness = lookup(entry, sent_at + age)
    if freshness is Freshness.FRESH:
        assert age < life / 2
        assert age < given_lifetimes.fresh
    if freshness is not Freshness.MISS:
        assert life - age > MARGIN
    if entry is not None:
        assert life - took > MARGIN
        assert entry.gone_at <= sent_at + life - MARGIN
        assert entry.expires_at == sent_at + life


@given(of_tokens, lives, moments, spans, st.booleans())
def test_served_expires_in_is_within_one_second_below_the_real_life(
    given_lifetimes: Lifetimes, life: int, sent_at: float, age: float, quoted: bool
) -> None:
    entry = make_entry(Response(200, (), token(life, quoted=quoted)), given_lifetimes, sent_at, sent_at)
    assume(entry is not None)
    assert entry is not None
    said = json.loads(entry.body(sent_at + age))["expires_in"]
    assert isinstance(said, str if quoted else int)
    truth = max(0.0, life - age)
    assert int(said) <= truth < int(said) + 1


@given(lives, spans, st.booleans(), st.text(max_size=20), st.integers(0, 3))
def test_ageing_a_token_changes_only_its_figures(life: int, age: float, quoted: bool, text: str, place: int) -> None:
    number = f'"{life}"' if quoted else str(life)
    fields = [
        f'"access_token":{json.dumps(text)}',
        f'"expires_on":"{life}"',
        f'"note":{json.dumps(text, ensure_ascii=False)}',
    ]
    before = "{" + ",".join(fields[:place])
    after = ",".join(fields[place:]) + "}"
    written = f'{before}{"," if place else ""}"expires_in" :\t{number} {"," if place < 3 else ""}{after}'
    body = written.encode("utf-8", "replace")
    found = read_token(body)
    assert found is not None
    left = max(0, math.floor(life - age))
    again = f'"{left}"' if quoted else str(left)
    assert found.aged(age) == body.replace(f'"expires_in" :\t{number} '.encode(), f'"expires_in" :\t{again} '.encode())


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["access_token", "expires_in", "x"]), inner),
        max_leaves=8,
    ).map(lambda document: json.dumps(document).encode())
)
def test_any_body_is_a_token_with_a_life_or_none(body: bytes) -> None:
    found = read_token(body)
    if found is not None:
        document = json.loads(body)
        assert int(document["expires_in"]) == found.expires_in >= 0
        assert json.loads(found.aged(found.expires_in)) == {**document, "expires_in": type(document["expires_in"])(0)}


@given(st.sampled_from(Freshness), st.booleans())
def test_plan_never_serves_an_unusable_entry(freshness: Freshness, failing: bool) -> None:
    chosen = plan(freshness, failing=failing)
    if freshness is Freshness.MISS:
        assert chosen is Plan.FETCH
    if freshness is Freshness.ON_ERROR and not failing:
        assert chosen is Plan.FETCH_OR_STALE
    if freshness is Freshness.FRESH:
        assert chosen is Plan.SERVE


@given(lifetimes, moments, spans)
def test_serving_stale_changes_no_deadline(given_lifetimes: Lifetimes, sent_at: float, age: float) -> None:
    entry = make_entry(Response(200, (), b""), given_lifetimes, sent_at, sent_at)
    assume(entry is not None)
    assert entry is not None
    before = replace(entry)
    lookup(entry, sent_at + age)
    entry.body(sent_at + age)
    assert entry == before
