from __future__ import annotations

import math
from dataclasses import replace

import httptools
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imdsproxy.cache.freshness import Entry, make_entry
from imdsproxy.cache.rendered_hit import RenderedHit, from_cache, same_until, write
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Headers, Response
from imdsproxy.records import Outcome

SENT = 1_000.0
LIFETIMES = Lifetimes(60, 60, 3600, 5)
AS_TOKEN = Lifetimes(math.inf, math.inf, math.inf, 5, token=True)
FIELDS = ((b"content-type", b"application/json; charset=utf-8"), (b"server", b"IMDS/150.870.65.1854"))
# How much too early a hit may be rendered again.
ROUNDING = 2e-6


def kept(
    body: bytes = b"{}",
    *,
    status: int = 200,
    headers: Headers = FIELDS,
    lifetimes: Lifetimes = LIFETIMES,
    sent_at: float = SENT,
) -> Entry:
    entry = make_entry(Response(status, headers, body), lifetimes, sent_at, sent_at)
    assert entry is not None
    return entry


def token(life: int, *, sent_at: float = SENT) -> Entry:
    body = b'{"access_token":"x","expires_in":"%d","resource":"r"}' % life
    return kept(body, lifetimes=AS_TOKEN, sent_at=sent_at)


def message(hit: RenderedHit) -> bytes:
    return hit.head + hit.body


class Reading:
    """A message as a client's parser takes it apart."""

    def __init__(self, message: bytes) -> None:
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.ends = 0
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(message)

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.version = self._parser.get_http_version()
        self.stays_open = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ends += 1


ENTRIES = {
    "document": kept(b'{"a":1}'),
    "empty": kept(b""),
    "no fields": kept(headers=()),
    "bytes of all kinds": kept(bytes(range(256)) + b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    "denied": kept(b'{"error":"x"}', status=400),
    "not found": kept(b'{"error":"x"}', status=404),
    "from another cache": kept(headers=((b"age", b"7"), (b"cache-status", b"imdsproxy; hit; ttl=9"), *FIELDS)),
    "part of a whole": replace(kept(b"westus"), derived=True),
    "token": token(86_399),
}


@pytest.mark.parametrize("seconds", [0.0, 0.999, 1.0, 3.25])
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_rendered_head_equals_the_records_fields(entry: Entry, seconds: float) -> None:
    now = SENT + seconds
    served = from_cache(entry, "instance", now)
    hit = write(entry, "instance", now)
    assert hit.served == served
    read = Reading(message(hit))
    assert (read.version, read.status, read.ends, read.stays_open) == ("1.1", entry.response.status, 1, True)
    assert read.reason == {200: b"OK", 400: b"Bad Request", 404: b"Not Found"}[entry.response.status]
    assert read.headers == served.headers()
    assert read.body == served.response.body
    assert hit.body == read.body


def test_write_renders_a_known_entry() -> None:
    assert message(write(kept(b'{"a":1}'), "instance", SENT + 3.5)) == (
        b"HTTP/1.1 200 OK\r\n"
        b"content-type: application/json; charset=utf-8\r\n"
        b"server: IMDS/150.870.65.1854\r\n"
        b"content-length: 7\r\n"
        b"age: 3\r\n"
        b"cache-status: imdsproxy; hit; ttl=56\r\n"
        b"\r\n"
        b'{"a":1}'
    )


def test_write_renders_a_token_with_its_remaining_life() -> None:
    entry = token(3601)
    body = write(entry, "token", SENT + 2.5).served.response.body
    assert body == b'{"access_token":"x","expires_in":"3598","resource":"r"}'
    assert entry.response.body == b'{"access_token":"x","expires_in":"3601","resource":"r"}'


@pytest.mark.parametrize(
    ("seconds", "outcome", "ttl"),
    [
        (0.0, Outcome.HIT, 60),
        (0.1, Outcome.HIT, 59),
        (59.9, Outcome.HIT, 0),
        (60.0, Outcome.STALE, 0),
        (60.1, Outcome.STALE, -1),
        (119.0, Outcome.STALE, -59),
    ],
)
def test_from_cache_is_a_hit_or_stale(seconds: float, outcome: Outcome, ttl: int) -> None:
    served = from_cache(kept(), "instance", SENT + seconds)
    assert (served.outcome, served.ttl, served.age) == (outcome, ttl, int(seconds))


def test_given_detail_replaces_derived() -> None:
    part = replace(kept(), derived=True)
    assert from_cache(part, "instance", SENT).detail == "derived"
    assert from_cache(part, "instance", SENT, "stale-if-error").detail == "stale-if-error"
    assert from_cache(kept(), "instance", SENT).detail is None


HALF = Lifetimes(2.5, 0, 0, 5)


@pytest.mark.parametrize(
    ("entry", "seconds", "until"),
    [
        # Sent at a whole second and fresh for whole seconds: Age and ttl move on in the same moment.
        (kept(), 0.25, 1.0),
        (kept(), 0.999, 1.0),
        (kept(), 1.0, 1.0),  # ttl is a whole number now, and a lower one in the next moment
        (kept(), 1.001, 2.0),
        (kept(), 59.5, 60.0),  # no longer than it is fresh
        # Fresh for two seconds and a half: ttl moves on half a second after Age does.
        (kept(lifetimes=HALF), 0.25, 0.5),
        (kept(lifetimes=HALF), 0.75, 1.0),
        (kept(lifetimes=HALF), 1.25, 1.5),
        (kept(lifetimes=HALF), 2.25, 2.5),
        # Seven seconds in another cache: Age counts on from there, and so much less of its life is left.
        (kept(headers=((b"age", b"7"),)), 0.25, 1.0),
        (kept(headers=((b"age", b"59"),)), 0.75, 1.0),
        # A token of an odd life is fresh for half of it, which ends between two seconds.
        (token(3601), 0.25, 0.5),
        (token(3601), 0.75, 1.0),
        (token(3600), 0.25, 1.0),
        # Shortly before the end of a token that is kept at all.
        (token(605), 302.25, 302.5),
        # What is denied is kept for five seconds.
        (kept(status=404), 4.5, 5.0),
    ],
)
def test_hit_is_valid_until_its_first_figure_changes(entry: Entry, seconds: float, until: float) -> None:
    found = same_until(entry, SENT + seconds)
    assert SENT + until - ROUNDING < found <= SENT + until
    assert write(entry, "instance", SENT + seconds).until == found


def test_entry_sent_in_the_future_has_age_zero() -> None:
    # Two readings of a clock may be out of order by less than it shows.
    entry = kept(lifetimes=Lifetimes(60.5, 0, 0, 0))
    hit = write(entry, "instance", SENT - 0.0001)
    assert hit.served.age == 0
    assert hit.until <= SENT + 1.0


LIVES = st.floats(0.001, 100_000)
MOMENTS = st.floats(0.0, 1e8)


@st.composite
def fresh_entries(draw: st.DrawFn) -> tuple[Entry, float]:
    """Draw an entry with any lifetime, and a moment at which it is fresh."""
    sent_at = draw(MOMENTS)
    if draw(st.booleans()):
        entry = token(draw(st.integers(302, 604_800)), sent_at=sent_at)
    else:
        age = draw(st.integers(0, 100))
        lifetimes = Lifetimes(age + draw(LIVES), 0, 0, 0)
        entry = kept(lifetimes=lifetimes, sent_at=sent_at, headers=((b"age", b"%d" % age),))
    return entry, _moment(draw, sent_at, entry.fresh_until)


def _moment(draw: st.DrawFn, first: float, end: float) -> float:
    """Return a moment before the end, often one at which a second is full, or close by."""
    seconds = draw(st.one_of(st.floats(0.0, 1.0).map(lambda share: share * (end - first)), st.integers(0, 100_000)))
    now = first + seconds + draw(st.sampled_from((0.0, 1e-9, -1e-9, 1e-7, -1e-7, 0.5)))
    assume(first <= now < end)
    return now


@given(fresh_entries(), st.floats(0.0, 1.0, exclude_max=True))
def test_hit_equals_a_new_rendering_until_its_end(found: tuple[Entry, float], share: float) -> None:
    entry, now = found
    hit = write(entry, "e", now)
    assert hit.until < entry.fresh_until
    later = now + share * (hit.until - now)
    if now <= later < hit.until:
        _assert_same(write(entry, "e", later), hit)
    _assert_same(write(entry, "e", max(now, math.nextafter(hit.until, 0.0))), hit)


@given(fresh_entries())
def test_same_until_is_the_moment_of_the_first_change(found: tuple[Entry, float]) -> None:
    """The hit must be reused until then, because rendering each would lose the gain of the fast path."""
    entry, now = found
    hit = write(entry, "e", now)
    beyond = max(now, hit.until) + ROUNDING
    assert beyond >= entry.fresh_until or message(write(entry, "e", beyond)) != message(hit)


def _assert_same(one: RenderedHit, other: RenderedHit) -> None:
    assert message(one) == message(other)
    assert one.served == other.served


@pytest.mark.parametrize("life", [1_005, 10_005, 86_399])
def test_write_with_an_earlier_hit_renders_the_same(life: int) -> None:
    """Also when a token's life loses a digit, and its body with it a byte."""
    for entry in (kept(b'{"a":1}'), token(life)):
        before = None
        for seconds in (0.25, 0.5, 1.25, 2.25, 9.25, 10.25):
            before = write(entry, "instance", SENT + seconds, before)
            assert before == write(entry, "instance", SENT + seconds)


@pytest.mark.parametrize("entry", [kept(b'{"a":1}'), token(86_399)])
def test_last_head_is_the_head_with_the_end_of_the_connection(entry: Entry) -> None:
    hit = write(entry, "instance", SENT + 1)
    first, last = Reading(message(hit)), Reading(hit.last_head + hit.body)
    assert last.headers == [*first.headers, (b"connection", b"close")]
    assert (last.body, last.ends, last.stays_open, first.stays_open) == (first.body, 1, False, True)
