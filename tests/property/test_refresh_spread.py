"""A refresh begins early and never late, by the seed of the process alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from imdsproxy.cache.freshness import Freshness, Plan, lookup, make_entry, plan
from imdsproxy.cache.refresh_spread import LARGEST_SHARE, head_start, spread
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Key, Response

keys = st.text(max_size=40).map(Key)
seeds = st.binary(min_size=1, max_size=64)
seconds = st.floats(0, 100_000)
TOKEN = b'{"access_token":"t","expires_in":"%d"}'
lifetimes = st.builds(
    Lifetimes, fresh=st.floats(0.01, 90_000), revalidate=seconds, stale_if_error=seconds, negative=st.just(5.0)
)


@given(keys, seeds, st.floats(-1e9, 1e9))
def test_head_start_is_a_small_share_of_the_bound_and_never_negative(key: Key, seed: bytes, bound: float) -> None:
    early = head_start(key, seed, bound)
    assert 0 <= early <= LARGEST_SHARE * max(0.0, bound)
    assert early == head_start(key, seed, bound)


@given(keys, seconds)
def test_without_a_seed_nothing_is_refreshed_early(key: Key, bound: float) -> None:
    assert head_start(key, b"", bound) == 0


@given(keys, seeds, lifetimes, st.booleans(), st.integers(400, 90_000), seconds, st.sampled_from([200, 404]))
def test_spread_moves_no_deadline_and_never_serves_more_than_before(  # noqa: PLR0917  # what an entry is made of
    key: Key, seed: bytes, given_lifetimes: Lifetimes, is_token: bool, life: int, age: float, status: int
) -> None:
    given_lifetimes = replace(given_lifetimes, token=is_token)
    plain = make_entry(Response(status, (), TOKEN % life), given_lifetimes, 0.0, 0.0)
    assume(plain is not None)
    assert plain is not None
    entry = spread(plain, key, seed)
    assert replace(entry, refresh_from=plain.refresh_from) == plain
    before, after = lookup(plain, age), lookup(entry, age)
    if after is Freshness.EXPIRING:
        assert before is Freshness.FRESH
        assert age >= (1 - LARGEST_SHARE) * plain.fresh_until - 1e-6
        assert plain.revalidate_until > plain.fresh_until
    else:
        assert after is before


def test_an_entry_about_to_expire_is_served_and_refreshed_only_from_a_healthy_imds() -> None:
    assert plan(Freshness.EXPIRING, failing=False) is Plan.SERVE_AND_REFRESH
    assert plan(Freshness.EXPIRING, failing=True) is Plan.SERVE


def test_head_starts_of_many_processes_are_spread_evenly() -> None:
    early = [head_start(Key("/metadata/x"), b"%d" % number, 1000.0) for number in range(1000)]
    tenths = [sum(low <= one / 10 < low + 1 for one in early) for low in range(10)]
    assert min(tenths) > 60, tenths  # of 100 expected; the draws are the same in every run
