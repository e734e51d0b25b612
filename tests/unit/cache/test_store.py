from __future__ import annotations

import tracemalloc

import pytest

from imdsproxy.cache.freshness import Entry, make_entry
from imdsproxy.cache.rendered_hit import write
from imdsproxy.cache.store import Store
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Key, Response, Target
from imdsproxy.testing.clock import FakeClock

LIFETIMES = Lifetimes(60, 60, 3600, 5)
AS_TOKEN = Lifetimes(float("inf"), 0, float("inf"), 5, token=True)
A, B, C = Key("/a?"), Key("/b?"), Key("/c?")


def entry(clock: FakeClock, body: bytes = b"", lifetimes: Lifetimes = LIFETIMES, *, age: float = 0.0) -> Entry:
    now = clock.monotonic()
    made = make_entry(Response(200, (), body), lifetimes, now - age, now)
    assert made is not None
    return made


def token(clock: FakeClock, life: int) -> Entry:
    return entry(clock, b'{"access_token":"x","expires_in":"%d"}' % life, AS_TOKEN)


def filled(*, room_for: float) -> tuple[Store, FakeClock]:
    """Return a store with room for so many entries, A and then B in it."""
    clock = FakeClock()
    store = Store(int((entry(clock).size + len(A)) * room_for), clock)
    assert store.put(A, entry(clock))
    assert store.put(B, entry(clock))
    return store, clock


def test_entry_is_found_under_its_own_key_only() -> None:
    clock = FakeClock()
    store, kept = Store(10_000, clock), entry(clock)
    assert store.get(A) is None
    assert store.put(A, kept)
    assert store.get(A) is kept
    assert store.get(B) is None


def test_entry_is_found_until_its_last_deadline() -> None:
    clock = FakeClock()
    store, kept = Store(10_000, clock), entry(clock)
    store.put(A, kept)
    for seconds in (59.0, 60.0, 3540.0):
        clock.advance(seconds)
        assert store.get(A) is kept
    clock.advance(1.0)
    assert store.get(A) is None


def test_expired_entry_is_not_stored() -> None:
    clock = FakeClock()
    store, kept = Store(10_000, clock), entry(clock)
    clock.advance(3660.0)
    assert not store.put(A, kept)
    assert len(store) == 0


@pytest.mark.attack(11)
@pytest.mark.parametrize("jump", [3600.0, -3600.0, 1e9])
def test_wall_clock_does_not_affect_expiry(jump: float) -> None:
    clock = FakeClock()
    store, kept = Store(10_000, clock), token(clock, 3600)
    store.put(A, kept)
    clock.jump_wall(jump)
    assert store.get(A) is kept


def test_newer_answer_replaces_an_older_one() -> None:
    clock = FakeClock()
    store = Store(10_000, clock)
    store.put(A, entry(clock))
    clock.advance(1.0)
    newer = entry(clock)
    assert store.put(A, newer)
    assert store.get(A) is newer
    assert len(store) == 1


def test_older_answer_does_not_replace_a_newer_one() -> None:
    clock = FakeClock()
    store, newer = Store(10_000, clock), entry(clock)
    store.put(A, newer)
    assert not store.put(A, entry(clock, age=1.0))
    assert store.get(A) is newer


def test_older_answer_is_stored_if_the_newer_one_is_gone() -> None:
    clock = FakeClock()
    store = Store(10_000, clock)
    store.put(A, entry(clock, lifetimes=Lifetimes(1)))
    overtaken = entry(clock, age=1.0)
    clock.advance(1.0)
    assert store.put(A, overtaken)
    assert store.get(A) is overtaken


def test_store_evicts_least_recently_used_first() -> None:
    store, clock = filled(room_for=2.5)
    store.get(A)
    assert store.put(C, entry(clock))
    assert store.get(B) is None
    assert store.get(A)
    assert store.get(C)


def test_reading_figures_does_not_update_recency() -> None:
    store, clock = filled(room_for=2.5)
    store.get(A)
    store.sweep()
    assert (len(store), store.bytes > 0, store.soonest_token_expiry()) == (2, True, None)
    store.drop(lambda _key: False)
    assert store.put(C, entry(clock))
    assert store.get(B) is None
    assert store.get(A)


def test_store_evicts_expired_entries_before_live_ones() -> None:
    clock = FakeClock()
    store = Store(int((entry(clock).size + len(A)) * 2.5), clock)
    store.put(B, entry(clock))
    store.put(A, entry(clock, lifetimes=Lifetimes(1)))
    clock.advance(1.0)
    assert store.put(C, entry(clock))
    assert store.get(B)


def test_entry_larger_than_the_cache_is_not_stored_and_evicts_nothing() -> None:
    store, clock = filled(room_for=2.5)
    assert not store.put(C, entry(clock, b"x" * 10_000))
    assert not store.put(Key("/" + "c" * 10_000), entry(clock))
    assert store.get(A)
    assert store.get(B)


def test_cache_of_zero_bytes_stores_nothing() -> None:
    clock = FakeClock()
    assert not Store(0, clock).put(A, entry(clock))


def test_flood_of_keys_stays_within_the_bound() -> None:
    clock = FakeClock()
    store = Store(100_000, clock)
    for number in range(5_000):
        assert store.put(Key(f"/flood?{number}"), entry(clock, b"x" * (number % 900)))
        assert store.bytes <= 100_000
    assert 10 < len(store) < 100


def test_store_counts_a_replaced_key_once() -> None:
    clock = FakeClock()
    store = Store(100_000, clock)
    for size in (1_000, 5_000, 10):
        clock.advance(1.0)
        store.put(A, entry(clock, b"x" * size))
        assert store.bytes == entry(clock, b"x" * size).size + len(A)


@pytest.mark.parametrize("body", [0, 100, 5_000])
def test_store_bytes_are_at_least_the_memory_used(body: int) -> None:
    clock = FakeClock()

    def filled_with(count: int) -> Store:
        store = Store(1 << 30, clock)
        for number in range(count):
            fields = tuple((b"x-name-%d" % n, b"%d-%d" % (number, n)) for n in range(6))
            response = Response(200, fields, b"%d" % number + b"x" * body)
            made = make_entry(response, LIFETIMES, clock.monotonic(), clock.monotonic())
            assert made is not None
            store.put(Key(f"/metadata/instance/compute/name?{number}"), made)
            kept = store.find(Key(f"/metadata/instance/compute/name?{number}"))
            assert kept is not None
            kept.hit = write(made, "instance", clock.monotonic())
        return store

    filled_with(1)  # what coverage and the interpreter keep of lines that run for the first time is not the store's
    tracemalloc.start()
    try:
        store = filled_with(1_000)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= store.bytes


def test_drop_removes_matching_entries_and_returns_their_number() -> None:
    store, clock = filled(room_for=10)
    store.put(C, entry(clock))
    assert store.drop(lambda key: key in (A, C)) == 2
    assert (store.get(A), store.get(C)) == (None, None)
    assert store.get(B)
    assert store.drop(lambda _key: True) == 1
    assert (len(store), store.bytes) == (0, 0)


def test_drop_does_not_count_expired_entries() -> None:
    store, clock = filled(room_for=10)
    clock.advance(3660.0)
    assert store.drop(lambda _key: True) == 0


def test_sweep_removes_expired_entries_from_the_figures() -> None:
    store, clock = filled(room_for=10)
    clock.advance(1.0)
    store.put(C, entry(clock))
    clock.advance(3659.0)
    store.sweep()
    assert len(store) == 1
    assert store.bytes == entry(clock).size + len(C)


def test_soonest_token_expiry_is_of_a_stored_token() -> None:
    clock = FakeClock()
    store = Store(100_000, clock)
    assert store.soonest_token_expiry() is None
    store.put(A, entry(clock))
    assert store.soonest_token_expiry() is None
    store.put(B, token(clock, 3600))
    store.put(C, token(clock, 900))
    assert store.soonest_token_expiry() == clock.monotonic() + 900
    clock.advance(600.0)
    assert store.soonest_token_expiry() == clock.monotonic() + 3000


def test_slots_are_those_that_have_not_expired() -> None:
    clock = FakeClock()
    store = Store(100_000, clock)
    for name, seconds in (("short", 10.0), ("long", 100.0)):
        made = make_entry(
            Response(200, (), b"{}"), Lifetimes(seconds, 0.0, 0.0, 0.0), clock.monotonic(), clock.monotonic()
        )
        assert made is not None
        assert store.put(Key(name), made)
    assert [slot.key for slot, _ in store.slots()] == ["short", "long"]
    clock.advance(10.0)
    assert [slot.key for slot, _ in store.slots()] == ["long"]
    assert len(store) == 1


def test_eviction_is_told_with_the_number_of_entries_left() -> None:
    store, clock = filled(room_for=2.5)
    told: list[int] = []
    store.on_eviction = told.append
    assert store.put(C, entry(clock))
    assert (told, store.on_eviction) == ([1], told.append)
    clock.advance(10_000)
    store.sweep()
    assert told == [1], "expiry is no eviction"


def test_token_life_is_that_of_the_stored_token() -> None:
    clock = FakeClock()
    store = Store(10_000, clock)
    target = Target(b"/a", ("a",), (), A)
    assert store.token_life(target) is None
    store.put(A, entry(clock))
    assert store.token_life(target) is None
    store.put(A, token(clock, 3600))
    clock.advance(600)
    assert store.token_life(target) == 3000
    clock.advance(3000)
    assert store.token_life(target) is None
