"""The layout of a shared budget's file: a read returns what was written, or nothing."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import LOWEST_RATE
from imdsproxy.budget.bucket_state import NO_LOAN, State

NOW = 1_000.0
BOOT = bytes(range(16))
HEADER = records.Header(BOOT, NOW, NOW + 17)
EMPTY = records.empty(HEADER)

RESTING = st.tuples(st.floats(max_value=NOW) | st.just(-math.inf), st.just(NO_LOAN))
LENT = st.tuples(st.floats(max_value=NOW + 3_000), st.integers(1, 2**64 - 1))
PAST = st.floats(max_value=NOW) | st.just(-math.inf)


@st.composite
def states(draw: st.DrawFn) -> State:
    permits = draw(st.lists(RESTING | LENT, min_size=1, max_size=records.MOST_PERMITS))
    return State(
        len(permits),
        draw(st.floats(0.001, 3_600)),
        [rests_from for rests_from, _ in permits],
        [holder for _, holder in permits],
        [draw(PAST) for _ in permits],
        draw(st.floats(0, 3_600)),
        draw(st.floats(max_value=NOW + 3_000) | st.just(-math.inf)),
        draw(st.floats(LOWEST_RATE, 1)),
        draw(PAST),
    )


def put(content: bytes, part: tuple[int, bytes]) -> bytes:
    offset, piece = part
    return content[:offset] + piece + content[offset + len(piece) :]


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


@given(st.lists(states(), min_size=1, max_size=4), st.sampled_from([0, 1]))
def test_read_returns_what_was_written_last(written: list[State], section: int) -> None:
    content = EMPTY
    for number, state in enumerate(written, start=1):
        content = put(content, records.write(state, section, number))
        assert records.read(content, section, NOW) == records.Record(state, number)
    assert len(content) == records.SIZE
    assert records.blank(content, 1 - section)
    assert not records.blank(content, section)
    assert records.read(content, 1 - section, NOW) is None
    assert records.read_header(content, BOOT, NOW) == HEADER


@given(states(), states(), st.data())
def test_read_returns_none_for_a_part_of_a_record(before: State, after: State, data: st.DataObject) -> None:
    content = put(EMPTY, records.write(before, 0, 1))
    offset, piece = records.write(after, 0, 2)
    written = data.draw(st.integers(1, len(piece) - 1))
    found = records.read(put(content, (offset, piece[:written])), 0, NOW)
    assert found is None or found == records.Record(after, 2), "where what is missing was there already"


def test_permit_held_for_hours_is_written_as_a_possible_record() -> None:
    state = records.begun(1, 1.0, NOW)
    state.held = 9_999.0
    found = records.read(put(EMPTY, records.write(state, 0, 1)), 0, NOW)
    assert found is not None
    assert found.state.held == records.LONGEST_LEASE


@given(states(), st.data())
def test_read_returns_none_for_a_changed_record(state: State, data: st.DataObject) -> None:
    offset, piece = records.write(state, 0, 1)
    place = data.draw(st.integers(0, len(piece) - 1))
    broken = bytearray(put(EMPTY, (offset, piece)))
    broken[offset + place] ^= data.draw(st.integers(1, 255))
    assert records.read(bytes(broken), 0, NOW) is None


@given(st.binary(max_size=records.SIZE + 1), st.binary(max_size=64))
def test_read_accepts_any_bytes_without_an_error(noise: bytes, beginning: bytes) -> None:
    for content in (noise, beginning + EMPTY[len(beginning) :], EMPTY[: len(noise)]):
        for section in (0, 1):
            records.read(content, section, NOW)
            records.blank(content, section)
        records.foreign(content)
        found = records.read_header(content, BOOT, NOW)
        assert found is None or len(content) == records.SIZE


@pytest.mark.parametrize("size", [0, 4, len(records.MAGIC), records._HEADER.size - 1])
def test_header_that_is_too_short_is_none_whatever_its_checksum(size: int) -> None:
    assert records.read_header(records._sealed(EMPTY[:size]), BOOT, NOW) is None


STATE = State(2, 1.0, [NOW - 1, NOW + 17], [NO_LOAN, 5], [-math.inf, NOW], 0.02, -math.inf, 1.0, -math.inf)


@pytest.mark.parametrize(
    "lie",
    [
        lambda state: setattr(state, "window", 0.0),
        lambda state: setattr(state, "window", math.nan),
        lambda state: setattr(state, "window", 1e9),
        lambda state: setattr(state, "held", -1.0),
        lambda state: setattr(state, "held", math.nan),
        lambda state: setattr(state, "rate", 0.0),
        lambda state: setattr(state, "rate", 1.1),
        lambda state: setattr(state, "rate_at", NOW + 5),
        lambda state: setattr(state, "blocked_until", NOW + 9_999),
        lambda state: state.lent_at.__setitem__(1, NOW + 5),
        lambda state: state.lent_at.__setitem__(0, math.nan),
        lambda state: state.rests_from.__setitem__(0, NOW + 5),
        lambda state: state.rests_from.__setitem__(1, NOW + 9_999),
        lambda state: state.rests_from.__setitem__(1, math.inf),
        lambda state: state.rests_from.__setitem__(1, math.nan),
    ],
)
def test_read_returns_none_for_an_impossible_state_with_a_valid_checksum(lie: Callable[[State], None]) -> None:
    state = State(2, 1.0, [NOW - 1, NOW + 17], [NO_LOAN, 5], [-math.inf, NOW], 0.02, -math.inf, 1.0, -math.inf)
    assert records.read(put(EMPTY, records.write(state, 0, 1)), 0, NOW) is not None
    lie(state)
    assert records.read(put(EMPTY, records.write(state, 0, 1)), 0, NOW) is None


@pytest.mark.parametrize("requests", [0, records.MOST_PERMITS + 1, 2**32 - 1])
def test_read_returns_none_for_an_impossible_number_of_permits(requests: int) -> None:
    offset, piece = records.write(STATE, 0, 1)
    content = piece[:8] + struct.pack("<I", requests) + piece[12:-4]
    assert records.read(put(EMPTY, (offset, sealed(content))), 0, NOW) is None


@pytest.mark.parametrize(
    ("content", "foreign"),
    [
        (b"", False),
        (b"imds", False),
        (EMPTY, False),
        (EMPTY[:100], False),
        (b"root:x:0:0:", True),
        (b"\0" * 100, True),
        (b"imdsproxy budge!", True),
    ],
)
def test_foreign_distinguishes_other_files_from_damaged_ones(content: bytes, foreign: bool) -> None:
    assert records.foreign(content) is foreign


@pytest.mark.parametrize("content", [b"", EMPTY[:-1], EMPTY + b"\0", b"x" + EMPTY[1:], EMPTY[:40] + b"x" + EMPTY[41:]])
def test_read_header_returns_none_for_an_incomplete_file(content: bytes) -> None:
    assert records.read_header(content, BOOT, NOW) is None


def test_read_header_returns_none_for_an_impossible_header() -> None:
    other = struct.pack("<16sI16sdd", b"imdsproxy budge!", 1, BOOT, NOW, NOW)
    assert records.read_header(sealed(other).ljust(records.SIZE, b"\0"), BOOT, NOW) is None
    assert records.read_header(records.empty(records.Header(BOOT, NOW, NOW + 9_999)), BOOT, NOW) is None
    assert records.read_header(records.empty(records.Header(BOOT, NOW + 9, NOW)), BOOT, NOW) is None


def test_read_header_raises_for_another_version() -> None:
    other = sealed(struct.pack("<16sI16sdd", records.MAGIC, 7, BOOT, NOW, NOW)).ljust(records.SIZE, b"\0")
    with pytest.raises(records.UnknownVersionError, match="7"):
        records.read_header(other, BOOT, NOW)


def test_first_state_has_every_permit_resting() -> None:
    state = records.begun(3, 1.0, NOW + 17)
    assert records.read(put(EMPTY, records.write(state, 1, 1)), 1, NOW) is not None
    assert (state.rests_from, len(state.holders)) == ([NOW + 17] * 3, 3)


def test_read_header_does_not_check_times_of_another_boot() -> None:
    before = records.Header(bytes(16), NOW + 9_999, NOW + 9_999)
    assert records.read_header(records.empty(before), BOOT, NOW) == before


def test_settings_are_read_as_they_were_written() -> None:
    settings = ((5, 1.0), None, (1, 3600.0), *records.NO_SETTINGS[3:])
    content = put(EMPTY, records.write(STATE, 1, 7, settings))
    assert records.read(content, 1, NOW) == records.Record(STATE, 7, settings)


@pytest.mark.parametrize("setting", [(129, 1.0), (5, 0.0), (5, -1.0), (5, math.nan), (5, 1e9)])
def test_read_returns_none_for_impossible_settings(setting: records.Setting) -> None:
    content = put(EMPTY, records.write(STATE, 0, 1, (setting, *records.NO_SETTINGS[1:])))
    assert records.read(content, 0, NOW) is None


def settings(*told: int | None) -> records.Settings:
    """Return settings with these numbers of requests; the other places are empty."""
    found = tuple(None if requests is None else (requests, 1.0) for requests in told)
    return (found + records.NO_SETTINGS)[: records.MOST_SETTINGS]


@pytest.mark.parametrize(
    ("found", "present", "there", "place"),
    [
        (settings(), set(), settings(5), 0),
        (settings(5), set(), settings(5), 0),
        (settings(3), {0}, settings(3, 5), 1),
        (settings(3), set(), settings(5), 0),
        (settings(3, 4), {1}, settings(5, 4), 0),
        (settings(3, 5, 4), {0}, settings(3, 5), 1),
    ],
)
def test_own_setting_replaces_that_of_an_ended_proxy(
    found: records.Settings, present: set[int], there: records.Settings, place: int
) -> None:
    assert records.with_own(found, (5, 1.0), present.__contains__) == (there, place)


def test_with_own_returns_none_without_a_free_place() -> None:
    full = settings(*range(10, 10 + records.MOST_SETTINGS))
    assert records.with_own(full, (5, 1.0), lambda _place: True) is None


def test_strictest_is_the_fewest_requests_and_the_longest_window() -> None:
    assert records.strictest(((5, 1.0), None, (20, 3.0))) == (5, 3.0)
