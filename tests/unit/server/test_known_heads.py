from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.cache.freshness import Entry, make_entry
from imdsproxy.cache.rendered_hit import RenderedHit, write
from imdsproxy.parts.parts import build
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Key, Request, Response, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.records import Outcome, RequestRecord
from imdsproxy.server.head_tables import SeenOnce
from imdsproxy.server.known_heads import LONGEST_KNOWN, KnownHeads
from imdsproxy.testing.clock import FakeClock
from tests.scripted import JSON, NOWHERE, Imds

LIFETIMES = Lifetimes(60, 60, 3600, 5)
HALF = Lifetimes(2.5, 60, 3600, 5)
AS_TOKEN = Lifetimes(float("inf"), float("inf"), float("inf"), 5, token=True)
A, B, C = Key("/a?"), Key("/b?"), Key("/c?")
HEAD = b"GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n"
OTHER = b"GET /b HTTP/1.1\r\nhost: localhost\r\n\r\n"
NAMED = b"GET /a HTTP/1.1\r\nhost: imds\r\n\r\n"
TCP = False
MOST_HEADS = 16_384
MOST_BYTES = 4 << 20


def made(now: float, body: bytes = b"{}", lifetimes: Lifetimes = LIFETIMES) -> Entry:
    entry = make_entry(Response(200, JSON, body), lifetimes, now, now)
    assert entry is not None
    return entry


def room_for(entries: float) -> int:
    """Return the bytes of a cache with room for so many."""
    return int(entries * (made(0.0).size + len("/00?")) * 64 / 52) + 1


def message(hit: RenderedHit) -> bytes:
    return hit.head + hit.body


class Place:
    """A proxy with a store that a test fills, and its known heads."""

    def __init__(self, heads: int = 1 << 21, **settings: Any) -> None:
        self.clock = FakeClock()
        self.proxy = build(replace(NOWHERE, **settings), Imds(), self.clock).proxy
        self.store = self.proxy.store
        self.known_heads = KnownHeads(self.proxy, heads)

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def put(self, key: Key = A, body: bytes = b"{}", lifetimes: Lifetimes = LIFETIMES, *, ago: float = 0.0) -> Entry:
        """Keep what was asked for so many seconds ago."""
        entry = made(self.now - ago, body, lifetimes)
        assert self.store.put(key, entry)
        return entry

    def remember(self, head: bytes = HEAD, key: Key = A, *, times: int = 2, unix: bool = False) -> None:
        for _ in range(times):
            self.proxy.hit(key, "instance", self.now)
            self.known_heads.remember(head, key, last=_is_last(head), unix=unix)

    def find(self, head: bytes = HEAD, *, unix: bool = False) -> bytes | None:
        """Return what would be sent for a head that is known."""
        found = self.known_heads.find(head, self.now, unix)
        return None if found is None else message(found[0])

    def drop(self, key: Key) -> None:
        self.store.drop(lambda one: one == key)


@pytest.fixture
def place() -> Place:
    place = Place()
    place.put()
    place.clock.advance(0.25)  # at a full second every hit is rendered again
    return place


@pytest.fixture
def known(place: Place) -> Place:
    place.remember()
    return place


def test_head_is_known_when_seen_for_the_second_time(place: Place) -> None:
    assert place.find() is None
    place.remember(times=1)
    assert (place.find(), len(place.known_heads)) == (None, 1), "the target is known, the fields are not"
    place.remember(times=1)
    assert (place.find() is not None, len(place.known_heads)) == (True, 1)
    place.remember(times=3)
    assert len(place.known_heads) == 1


def test_find_returns_the_hit(known: Place) -> None:
    known.clock.advance(3.5)
    found = known.known_heads.find(HEAD, known.now, TCP)
    entry = known.store.get(A)
    assert found is not None
    hit, last = found
    assert last == _is_last(HEAD)
    assert entry is not None
    assert hit == write(entry, "instance", known.now)
    assert (hit.served.age, hit.served.ttl, hit.served.endpoint) == (3, 56, "instance")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD[:-1],
        HEAD + b"\r\n",
        b"\r\n" + HEAD,
        HEAD + HEAD,
        HEAD.lower(),
        HEAD.replace(b"/a", b"/b"),
        HEAD.replace(b"localhost", b"localhosT"),
        HEAD.replace(b"\r\n\r\n", b"\r\nx-forwarded-for: 10.0.0.1\r\n\r\n"),
    ],
)
def test_head_is_known_by_its_exact_bytes(known: Place, head: bytes) -> None:
    assert known.find(head) is None
    assert known.find() is not None


def test_head_is_found_by_any_bytes_like_buffer(known: Place) -> None:
    # What an event loop hands over may be one made for this read.
    assert known.find(bytes(bytearray(HEAD))) == known.find()


@pytest.mark.parametrize(
    ("lifetimes", "moments"),
    [
        (LIFETIMES, (0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 30.0, 59.0, 59.999)),
        (HALF, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.25, 2.499)),
    ],
)
def test_find_returns_the_hit_for_the_given_moment(lifetimes: Lifetimes, moments: tuple[float, ...]) -> None:
    place = Place()
    entry, began = place.put(lifetimes=lifetimes), place.now
    place.remember()
    for moment in moments:
        place.clock.advance(began + moment - place.now)
        assert place.find() == message(write(entry, "instance", place.now))


def test_find_ages_a_token() -> None:
    place = Place()
    place.put(body=b'{"access_token":"x","expires_in":"3600"}', lifetimes=AS_TOKEN)
    place.remember()
    for seconds in range(5):
        found = place.find()
        assert found is not None
        assert found.endswith(b'\r\n\r\n{"access_token":"x","expires_in":"%d"}' % (3600 - seconds))
        place.clock.advance(1.0)


@pytest.mark.parametrize("seconds", [60.0, 61.0, 120.0, 3659.0, 3660.0, 1e9])
def test_head_is_forgotten_when_its_entry_is_stale(known: Place, seconds: float) -> None:
    assert known.find() is not None
    known.clock.advance(seconds)
    assert known.find() is None
    assert len(known.known_heads) == 0


def test_head_is_forgotten_when_its_entry_is_replaced(known: Place) -> None:
    assert known.find() is not None
    known.clock.advance(0.5)
    known.put(body=b'{"new":1}')
    assert known.find() is None
    assert len(known.known_heads) == 0
    # It has been seen before, and goes on with what is there now.
    known.remember(times=1)
    found = known.find()
    assert found is not None
    assert found.endswith(b'{"new":1}')


def test_head_is_forgotten_when_its_entry_is_dropped(known: Place) -> None:
    assert known.find() is not None
    known.drop(A)
    assert known.find() is None
    assert len(known.known_heads) == 0


@pytest.mark.parametrize("way", ["replaced", "dropped"])
def test_head_is_forgotten_even_if_its_entry_is_referenced(known: Place, way: str) -> None:
    held = known.store.find(A)
    assert known.find() is not None
    if way == "replaced":
        known.put(body=b'{"new":1}')
    else:
        known.drop(A)
    assert known.find() is None
    assert held is not None
    assert (held.entry, held.hit) == (None, None), "its place is empty"


def test_head_does_not_match_an_entry_stored_again_after_a_drop(known: Place) -> None:
    assert known.find() is not None
    known.drop(A)
    known.put(body=b'{"new":1}')
    assert known.find() is None


def test_head_is_forgotten_when_its_entry_is_evicted() -> None:
    place = Place(cache_max_bytes=room_for(2.5))
    place.put(A)
    place.remember()
    assert place.find() is not None
    place.put(B)
    place.put(C)
    assert place.store.get(A) is None
    assert place.find() is None
    assert len(place.known_heads) == 0


def test_entry_used_by_the_fast_path_only_stays_in_the_cache() -> None:
    place = Place(cache_max_bytes=room_for(3))
    for key in (A, B):
        place.put(key)
    place.remember()
    assert place.find() is not None
    assert place.store.find(B) is not None
    for number in range(20):
        place.clock.advance(1.0)
        assert place.find() is not None, number
        place.put(Key(f"/{number}?"))
    assert place.store.find(B) is None


def test_head_stays_known_when_other_entries_change(known: Place) -> None:
    before = known.find()
    known.put(B)
    assert known.find() == before
    known.put(B, b'{"new":1}')
    assert known.find() == before
    known.drop(B)
    assert known.find() == before
    assert len(known.known_heads) == 1


def test_one_entry_answers_all_its_heads(known: Place) -> None:
    known.remember(OTHER)
    assert known.find(OTHER) == known.find()
    known.clock.advance(7.0)
    assert known.find(OTHER) == known.find()
    known.drop(A)
    assert known.find(OTHER) is None
    assert known.find() is None


def test_head_never_gets_the_answer_of_another(known: Place) -> None:
    known.put(B, b'{"b":1}')
    known.remember(OTHER, B)
    first, second = known.find(), known.find(OTHER)
    assert first is not None
    assert second is not None
    assert (first.endswith(b"{}"), second.endswith(b'{"b":1}')) == (True, True)


def test_head_without_an_entry_is_not_remembered(place: Place) -> None:
    place.drop(A)
    place.remember(times=3)
    assert len(place.known_heads) == 0


def test_clear_forgets_every_head(known: Place) -> None:
    known.put(B)
    known.remember(OTHER, B)
    known.known_heads.clear()
    assert len(known.known_heads) == 0
    assert known.find() is None
    assert known.find(OTHER) is None
    known.remember(times=1)
    assert known.find() is None, "it must be seen twice again"
    known.remember(times=1)
    assert known.find() is not None


def test_head_of_a_unix_socket_is_not_known_over_tcp(place: Place) -> None:
    """Any host name is accepted there, and only there."""
    place.remember(unix=True)
    assert place.find(unix=True) is not None
    assert [place.find(data) for data in (HEAD, HEAD + b"unix", b"unix" + HEAD)] == [None] * 3
    place.remember(NAMED)
    assert place.find(NAMED) is not None
    assert place.find(NAMED, unix=True) is None


# --- tracing fields


def traced(number: int, head: bytes = HEAD) -> bytes:
    return head[:-2] + b"X-Ms-Client-Request-Id: %d\r\nTraceparent: 00-%032x-01\r\n\r\n" % (number, number)


def test_heads_that_differ_in_their_tracing_fields_are_one(place: Place) -> None:
    place.remember(traced(1), times=1)
    assert place.find(traced(2)) is None
    place.remember(traced(2), times=1)
    assert place.find(traced(3)) == place.find() is not None
    assert place.find(traced(4, NAMED)) is None


def test_head_with_tracing_fields_is_forgotten_with_its_entry(place: Place) -> None:
    place.remember(traced(1))
    place.drop(A)
    assert place.find(traced(2)) is None
    assert len(place.known_heads) == 0


@pytest.mark.parametrize(("fields", "bytes_of_value", "known"), [(90, 1, True), (110, 1, False), (2, 4096, False)])
def test_tracing_fields_beyond_the_limits_are_not_left_out(
    place: Place, fields: int, bytes_of_value: int, known: bool
) -> None:
    place.remember(HEAD)
    lines = b"traceparent: %b\r\n" % (b"1" * bytes_of_value) * fields
    assert (place.find(HEAD[:-2] + lines + b"\r\n") is not None) == known


# --- bounds


def head_of(length: int, number: int = 0) -> bytes:
    """Return a head of so many bytes."""
    beginning, end = b"GET /a HTTP/1.1\r\nx-number: %d\r\nx: " % number, b"\r\n\r\n"
    return beginning + b"y" * (length - len(beginning) - len(end)) + end


@pytest.mark.parametrize(
    ("length", "taken"), [(50, True), (4095, True), (4096, True), (4097, False), (5000, False), (65_536, False)]
)
def test_too_long_head_is_not_remembered(place: Place, length: int, taken: bool) -> None:
    head = head_of(length)
    assert len(head) == length
    place.remember(head, times=3)
    assert (place.find(head) is not None, len(place.known_heads)) == (taken, int(taken))


def test_longest_head_is_four_kilobytes() -> None:
    assert LONGEST_KNOWN == 4096


def target_of(number: int, length: int = 0) -> bytes:
    """Return a head with a target of its own."""
    return b"GET /a?%d%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (number, b"y" * length)


def test_targets_are_bounded_in_number_and_the_oldest_is_evicted_first() -> None:
    place = Place(heads=16 << 20)
    place.put()
    heads = [target_of(number) for number in range(MOST_HEADS + 100)]
    place.remember()
    for head in heads:
        place.remember(head, times=1)
    there = [place.find(head) is not None for head in heads]
    assert sum(there) == len(place.known_heads) == MOST_HEADS
    assert there == sorted(there)
    place.remember(heads[0], times=1)
    assert place.find(heads[0]) is not None


def test_fields_are_bounded_and_the_oldest_are_evicted_first(place: Place) -> None:
    heads = [head_of(200, number) for number in range(1_000)]
    for head in heads:
        place.remember(head)
        assert place.find(head) is not None
    place.known_heads._repeated[TCP].clear()  # it may keep a head longer than its fields are kept
    there = [place.find(head) is not None for head in heads]
    assert 100 < sum(there) < len(heads)
    assert there == sorted(there)
    assert place.find() is None
    place.remember()
    assert place.find() is not None, "the target is known, however many fields there are"


@pytest.mark.parametrize("max_bytes", [0, 1, 200, 4096, 100_000])
def test_known_and_once_seen_heads_stay_within_the_bound(max_bytes: int) -> None:
    place = Place(heads=max_bytes)
    place.put()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(2_000):
        place.remember(head_of(400, number), times=1 + number % 2)
        place.remember(target_of(number, 100), times=1)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(place.known_heads) * 400 <= max_bytes
    assert taken <= max_bytes + 5_000
    assert (len(place.known_heads) > 0) == (max_bytes >= 4096)


def test_targets_are_bounded_in_bytes(place: Place) -> None:
    place.remember()
    for number in range(3_000):
        place.remember(target_of(number, 3_900), times=1)
    assert 100 < len(place.known_heads) <= MOST_BYTES // 3_900
    assert place.find(target_of(2_999, 3_900)) is not None
    assert place.find(target_of(0, 3_900)) is None


def test_bytes_are_released_when_targets_are_forgotten(place: Place) -> None:
    """Were they not counted back, less and less would find room."""
    for turn in range(4):
        place.remember()
        for number in range(200):
            place.remember(target_of(number, 3_900), times=1)
        assert len(place.known_heads) == 201, turn
        if turn % 2:
            place.known_heads.clear()
            continue
        place.clock.advance(0.5)
        place.put()
        assert not any(place.find(target_of(number, 3_900)) for number in range(200))
        assert len(place.known_heads) == 1


def test_heads_seen_once_take_little_memory(place: Place) -> None:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(50_000):
        place.known_heads.remember(head_of(200, number), A, last=False, unix=False)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    known = sum(place.find(head_of(200, number)) is not None for number in range(50_000))
    assert known < 50_000 / 64, "fields that another's mark makes known"
    assert taken < 3_000_000


def test_ten_thousand_targets_of_one_client_are_known_after_their_first_round() -> None:
    place = Place(heads=8 << 20)
    place.put()
    place.remember()
    heads = [target_of(number) for number in range(10_000)]
    for head in heads:
        place.remember(head, times=1)
    assert all(place.find(head) is not None for head in heads)


def test_table_of_repeated_heads_is_emptied_when_it_is_full_and_nothing_is_lost() -> None:
    place = Place(heads=600_000)  # a twenty-fourth of it, for these heads, is room for sixty
    entry = place.put()
    place.remember()
    heads = [target_of(number) for number in range(300)]
    for head in heads:
        place.remember(head, times=1)
    for moment in (0.0, 0.0, 1.5):  # all are found, as repeated and as parts, and rendered again when they have to be
        place.clock.advance(moment)
        assert {place.find(head) for head in (*heads, *heads)} == {message(write(entry, "instance", place.now))}
        assert 0 < len(place.known_heads._repeated[TCP].heads) < len(heads)
    place.drop(A)
    assert not any(place.find(head) for head in heads)


def test_table_of_repeated_heads_is_not_emptied_each_time_that_more_heads_repeat_in_turn() -> None:
    """A table that is emptied in each round holds none of its heads when their turn comes."""
    place = Place(heads=600_000)
    place.put()
    place.remember()
    heads = [target_of(number) for number in range(300)]
    for head in heads:
        place.remember(head, times=1)
    table = place.known_heads._repeated[TCP].heads
    for _ in range(2):
        assert all(place.find(head) for head in heads)
        assert heads[1] in table
    place.clock.advance(1.0)
    popular = target_of(len(heads))
    place.remember(popular, times=1)
    rounds = 0
    while popular not in table:
        assert all(place.find(head) for head in (*heads, popular))
        rounds += 1
    assert rounds < 100, "a head that becomes popular gets a place in the end"


@given(st.lists(st.sampled_from(["plain", "traced", "other", "unknown"]), max_size=12))
def test_heads_with_and_without_tracing_fields_are_found_in_any_order(order: list[str]) -> None:
    place = Place()
    place.put()
    place.remember()
    traced = HEAD[:-2] + b"x-ms-client-request-id: %d\r\n\r\n"
    heads = {
        "plain": (HEAD, True),
        "traced": (traced, True),
        "other": (OTHER, False),
        "unknown": (HEAD[:-2] + b"accept: text/plain\r\n\r\n", False),
    }
    for number, name in enumerate(order):
        head, known = heads[name]
        assert (place.find(head % number if name == "traced" else head) is not None) is known


# --- both parts of a head


INSTANCE, TOKEN = Key("/i?"), Key("/t?")
OF_INSTANCE, OF_TOKEN = b"GET /i HTTP/1.1\r\n", b"GET /t HTTP/1.1\r\n"
PLAIN, GUARDED = b"host: localhost\r\n\r\n", b"host: localhost\r\nmetadata: true\r\n\r\n"


def test_fields_are_known_for_the_targets_of_an_endpoint_that_accepted_them(place: Place) -> None:
    """Tokens need `Metadata`, documents may not."""
    place.put(INSTANCE)
    place.put(TOKEN)
    place.proxy.hit(TOKEN, "token", place.now)
    for _ in range(2):
        place.remember(OF_INSTANCE + PLAIN, INSTANCE)
        place.known_heads.remember(OF_TOKEN + GUARDED, TOKEN, last=False, unix=False)
    heads = {
        endpoint + fields: place.find(endpoint + fields) is not None
        for endpoint in (OF_INSTANCE, OF_TOKEN)
        for fields in (PLAIN, GUARDED)
    }
    assert heads == {
        OF_INSTANCE + PLAIN: True,
        OF_INSTANCE + GUARDED: False,
        OF_TOKEN + PLAIN: False,
        OF_TOKEN + GUARDED: True,
    }
    place.remember(OF_INSTANCE + GUARDED, INSTANCE, times=1)  # known fields need no second time at another endpoint
    assert place.find(OF_INSTANCE + GUARDED) is not None
    assert place.find(OF_TOKEN + GUARDED) is not None


def test_absolute_form_is_never_known(place: Place) -> None:
    head = HEAD.replace(b"GET /a", b"GET http://localhost/a")
    place.remember(head, times=3)
    assert (place.find(head), len(place.known_heads)) == (None, 0)


def stored(target: str, method: str = "GET", *, kept: bool = True) -> tuple[Request, RequestRecord]:
    read = read_target(target.encode())
    assert isinstance(read, Target)
    answer = RequestRecord(Response(200, JSON, b"{}"), "instance", Outcome.MISS, stored=kept)
    return Request(method, read), answer


def test_target_is_known_when_its_answer_is_stored(place: Place) -> None:
    """The first hit of each target then needs no parsing either."""
    place.remember()
    request, answer = stored("/metadata/instance?n=1")
    place.put(request.target.key, b'{"n":1}')
    head = HEAD.replace(b"/a", request.target.raw)
    assert place.find(head) is None
    place.known_heads.note_answer(request, answer)
    found = place.find(head)
    assert found is not None
    assert found.endswith(b'{"n":1}')


@pytest.mark.parametrize(
    ("target", "method", "kept", "there"),
    [
        ("/metadata/instance?n=1", "GET", False, True),
        ("/metadata/instance?n=1", "GET", True, False),
        ("/metadata/instance?n=1", "POST", True, True),
        ("/metadata/instance?n=1&bypass_cache=true", "GET", True, True),
        ("/metadata/instance?n=" + "1" * LONGEST_KNOWN, "GET", True, True),
        ("http://localhost/metadata/instance", "GET", False, True),
    ],
)
def test_target_is_not_known_by_another_answer(place: Place, target: str, method: str, kept: bool, there: bool) -> None:
    request, answer = stored(target, method, kept=kept)
    if there:
        place.put(request.target.key)
    place.known_heads.note_answer(request, answer)
    assert len(place.known_heads) == 0


def test_marks_of_heads_are_removed_when_there_are_too_many() -> None:
    seen = SeenOnce(80)
    assert [seen.add(b"%d" % number) for number in range(10)].count(True) <= 1
    for number in range(10, 2_000):
        seen.add(b"%d" % number)
        assert int.from_bytes(seen._bits, "big").bit_count() <= 10
    assert not SeenOnce(0).add(b"x")
    assert not SeenOnce(0).add(b"x")


@pytest.mark.parametrize("way", ["left the cache", "replaced", "dropped"])
def test_head_keeps_no_evicted_entry_in_memory(way: str) -> None:
    """Bodies may be of a megabyte each, and many heads are never heard of again."""
    place = Place(cache_max_bytes=300_000)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(400):
        place.clock.advance(0.01)
        key = Key(f"/{number}?") if way == "left the cache" else A
        place.put(key, b"%100000d" % number)
        place.remember(b"GET / HTTP/1.1\r\nx: %d\r\n\r\n" % number, key)
        if way == "dropped":
            place.drop(key)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken < 3_000_000


# --- equal to the full path


STEPS = ("ask",) * 6 + ("put", "drop", "pass", "empty")
FIELDS = (b"\r\n", b"host: localhost\r\n\r\n", b"connection: close\r\n\r\n")


@pytest.mark.no_cover
@given(st.data())
def test_known_heads_never_differ_from_the_full_path(data: st.DataObject) -> None:
    """A found hit is that of the entry in the cache at this moment, in the bytes of this moment; and fresh."""
    place = Place(cache_max_bytes=room_for(2.5))
    keys = (A, B, C)
    for number in range(data.draw(st.integers(10, 60))):
        key = data.draw(st.sampled_from(keys))
        match data.draw(st.sampled_from(STEPS)):
            case "put":
                life = data.draw(st.sampled_from((0.5, 2.0, 2.5, 60.0)))
                lifetimes = Lifetimes(life, 0, data.draw(st.sampled_from((0, 60))), 0)
                sent_at = place.now - data.draw(st.sampled_from((0.0, 0.1)))
                # It is not kept where what is there was asked for later.
                place.store.put(key, made(sent_at, b"%d" % number, lifetimes))
            case "drop":
                place.drop(key)
            case "pass":
                place.clock.advance(data.draw(st.sampled_from((0.25, 0.5, 1.0, 1.75))))
            case "empty":
                place.store.drop(lambda _key: True)
                place.known_heads.clear()
            case _:
                fields = data.draw(st.sampled_from(FIELDS))
                _ask(place, b"GET %b HTTP/1.1\r\n%b" % (key.encode(), fields), key)


def _ask(place: Place, head: bytes, key: Key) -> None:
    """Ask as a connection does: by the bytes, and where they are not known by what they say."""
    found = place.known_heads.find(head, place.now, TCP)
    entry = place.store.get(key)
    if found is not None:
        assert entry is not None
        assert place.now < entry.fresh_until
        hit, last = found
        assert message(hit) == message(write(entry, "instance", place.now))
        assert last == _is_last(head)
    elif entry is not None and place.now < entry.fresh_until:
        assert place.proxy.hit(key, "instance", place.now) is not None
        place.known_heads.remember(head, key, last=_is_last(head), unix=False)


def _is_last(head: bytes) -> bool:
    return b"connection: close" in head
