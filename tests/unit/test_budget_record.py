"""How a shared budget lies in its file: what is read is what was written, or nothing."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy import budget_record as records
from imdsproxy.budget import LOWEST_RATE, NOBODY, State

NOW = 1_000.0
BOOT = bytes(range(16))
EMPTY = records.header(BOOT, NOW).ljust(records.SIZE, b"\0")

RESTING = st.tuples(st.floats(max_value=NOW) | st.just(-math.inf), st.just(NOBODY))
LENT = st.tuples(st.floats(max_value=NOW + 3_000), st.integers(1, 2**64 - 1))
PAST = st.floats(max_value=NOW) | st.just(-math.inf)


@st.composite
def states(draw: st.DrawFn) -> State:
    tokens = draw(st.lists(RESTING | LENT, min_size=1, max_size=records.MOST_TOKENS))
    return State(
        len(tokens),
        draw(st.floats(0.001, 3_600)),
        [rests_from for rests_from, _ in tokens],
        [holder for _, holder in tokens],
        draw(st.floats(0, 3_600)),
        draw(st.floats(max_value=NOW + 3_000) | st.just(-math.inf)),
        draw(st.floats(LOWEST_RATE, 1)),
        draw(PAST),
        draw(PAST),
    )


def put(content: bytes, part: tuple[int, bytes]) -> bytes:
    offset, piece = part
    return content[:offset] + piece + content[offset + len(piece) :]


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


@given(st.lists(states(), min_size=1, max_size=4), st.sampled_from([0, 1]))
def test_what_is_read_is_what_was_written_last(written: list[State], section: int) -> None:
    content, record = EMPTY, None
    for state in written:
        content = put(content, records.write(state, section, record))
        record = records.read(content, section, NOW)
        assert record is not None
        assert record.state == state
    assert len(content) == records.SIZE
    assert records.blank(content, 1 - section)
    assert not records.blank(content, section)
    assert records.read(content, 1 - section, NOW) is None
    assert records.read_header(content, NOW) == records.Header(BOOT, NOW)


@given(states(), states(), st.data())
def test_who_is_killed_while_writing_leaves_what_was_there(before: State, after: State, data: st.DataObject) -> None:
    content = put(EMPTY, records.write(before, 0, None))
    record = records.read(content, 0, NOW)
    offset, piece = records.write(after, 0, record)
    written = data.draw(st.integers(0, len(piece) - 1))
    found = records.read(put(content, (offset, piece[:written])), 0, NOW)
    assert found is not None
    assert found.state == before


@given(states(), st.data())
def test_what_was_changed_by_anybody_else_is_not_read(state: State, data: st.DataObject) -> None:
    offset, piece = records.write(state, 0, None)
    place = data.draw(st.integers(0, len(piece) - 1))
    broken = bytearray(put(EMPTY, (offset, piece)))
    broken[offset + place] ^= data.draw(st.integers(1, 255))
    assert records.read(bytes(broken), 0, NOW) is None


@given(st.binary(max_size=records.SIZE + 1), st.binary(max_size=64))
def test_no_bytes_at_all_are_stumbled_over(noise: bytes, beginning: bytes) -> None:
    for content in (noise, beginning + EMPTY[len(beginning) :], EMPTY[: len(noise)]):
        for section in (0, 1):
            records.read(content, section, NOW)
            records.blank(content, section)
        records.foreign(content)
        found = records.read_header(content, NOW)
        assert found is None or len(content) == records.SIZE


STATE = State(2, 1.0, [NOW - 1, NOW + 17], [NOBODY, 5], 0.02, -math.inf, 1.0, -math.inf, NOW)


@pytest.mark.parametrize(
    "lie",
    [
        lambda state: setattr(state, "window", 0.0),
        lambda state: setattr(state, "window", math.nan),
        lambda state: setattr(state, "window", 1e9),
        lambda state: setattr(state, "held", -1.0),
        lambda state: setattr(state, "held", math.inf),
        lambda state: setattr(state, "rate", 0.0),
        lambda state: setattr(state, "rate", 1.1),
        lambda state: setattr(state, "rate_at", NOW + 5),
        lambda state: setattr(state, "blocked_until", NOW + 9_999),
        lambda state: setattr(state, "wanted_until", NOW + 9),
        lambda state: state.rests_from.__setitem__(0, NOW + 5),
        lambda state: state.rests_from.__setitem__(1, NOW + 9_999),
        lambda state: state.rests_from.__setitem__(1, math.inf),
        lambda state: state.rests_from.__setitem__(1, math.nan),
    ],
)
def test_what_no_proxy_can_have_written_is_not_read_though_its_checksum_is_right(lie: Callable[[State], None]) -> None:
    state = State(2, 1.0, [NOW - 1, NOW + 17], [NOBODY, 5], 0.02, -math.inf, 1.0, -math.inf, NOW)
    assert records.read(put(EMPTY, records.write(state, 0, None)), 0, NOW) is not None
    lie(state)
    assert records.read(put(EMPTY, records.write(state, 0, None)), 0, NOW) is None


@pytest.mark.parametrize("requests", [0, records.MOST_TOKENS + 1, 2**32 - 1])
def test_a_number_of_tokens_that_cannot_be_is_not_read(requests: int) -> None:
    offset, piece = records.write(STATE, 0, None)
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
def test_somebody_elses_file_is_known_from_a_damaged_one(content: bytes, foreign: bool) -> None:
    assert records.foreign(content) is foreign


@pytest.mark.parametrize("content", [b"", EMPTY[:-1], EMPTY + b"\0", b"x" + EMPTY[1:], EMPTY[:40] + b"x" + EMPTY[41:]])
def test_a_file_that_is_no_whole_one_has_no_header(content: bytes) -> None:
    assert records.read_header(content, NOW) is None


def test_a_header_that_no_proxy_can_have_written_is_none() -> None:
    other = struct.pack("<16sI16sd", b"imdsproxy budge!", 1, BOOT, NOW)
    assert records.read_header(sealed(other).ljust(records.SIZE, b"\0"), NOW) is None
    assert records.read_header(records.header(BOOT, NOW + 9_999).ljust(records.SIZE, b"\0"), NOW) is None


def test_another_version_is_told_and_not_guessed_at() -> None:
    other = sealed(struct.pack("<16sI16sd", records.MAGIC, 7, BOOT, NOW)).ljust(records.SIZE, b"\0")
    with pytest.raises(records.UnknownVersionError, match="7"):
        records.read_header(other, NOW)


def test_a_state_that_is_begun_lets_every_token_rest() -> None:
    state = records.begun(3, 1.0, NOW + 17)
    assert records.read(put(EMPTY, records.write(state, 1, None)), 1, NOW) is not None
    assert (state.rests_from, len(state.holders)) == ([NOW + 17] * 3, 3)
