"""Entries as a file, and back: what is bound to what, and that no entry gets younger."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.cache import handover
from imdsproxy.cache.handover import KeptEntry, Situation, UnusableError, foreign, read, write
from imdsproxy.protocol.messages import Key

HERE = Situation(b"b" * 16, "http://127.0.0.1:9", 1000.0, 1_800_000_000.0)
ENTRY = KeptEntry(Key("/metadata/instance?api-version=1"), ((b"content-type", b"text/plain"),), b"\x00body", 990.0)
PLENTY = 1 << 20

entries = st.lists(
    st.builds(
        KeptEntry,
        key=st.text(st.characters(max_codepoint=127), max_size=40).map(Key),
        headers=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4).map(tuple),
        body=st.binary(max_size=200),
        sent_at=st.floats(0, 1000),
    ),
    max_size=5,
)


def later(monotonic: float, wall: float | None = None) -> Situation:
    """Return the situation some seconds later by the monotonic clock, and by the wall clock if that differs."""
    return replace(HERE, monotonic=HERE.monotonic + monotonic, wall=HERE.wall + (monotonic if wall is None else wall))


def sealed(content: bytes) -> bytes:
    return content + sha256(content).digest()


@given(entries)
def test_entries_come_back_as_they_were(kept: list[KeptEntry]) -> None:
    assert list(read(write(kept, HERE, PLENTY), HERE)) == kept


@pytest.mark.attack(11)
@given(entries, st.floats(0, 1e6), st.floats(-1e9, 1e9))
def test_no_entry_gets_younger_whatever_the_wall_clock_does(kept: list[KeptEntry], passed: float, wall: float) -> None:
    there = later(passed, wall)
    for before, after in zip(kept, read(write(kept, HERE, PLENTY), there), strict=True):
        age = there.monotonic - after.sent_at
        assert age >= (HERE.monotonic - before.sent_at) + passed - 1e-3
        assert age <= (HERE.monotonic - before.sent_at) + max(passed, wall) + 1e-3


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: handover.MAGIC + rest))
def test_any_bytes_are_entries_or_unusable(content: bytes) -> None:
    with pytest.raises(UnusableError):
        read(content, HERE)


@given(entries, st.data())
def test_any_change_of_a_byte_is_noticed(kept: list[KeptEntry], data: st.DataObject) -> None:
    content = bytearray(write(kept, HERE, PLENTY))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UnusableError):
        read(bytes(content), HERE)
    with pytest.raises(UnusableError):
        read(bytes(content[:place]), HERE)


@given(st.binary(max_size=80))
def test_a_sealed_file_with_other_records_is_unusable_or_read(records: bytes) -> None:
    empty = write([], HERE, PLENTY)[: -sha256().digest_size]
    if not records:
        assert read(sealed(empty), HERE) == ()
        return
    with contextlib.suppress(UnusableError):
        assert read(sealed(empty + records), HERE)


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (replace(HERE, boot=b"c" * 16), "another start of this machine"),
        (replace(HERE, upstream="http://169.254.169.254"), "it has answers of http://127.0.0.1:9, and the upstream is"),
        (later(-1.0), "has not reached"),
        (replace(HERE, wall=math.nan, monotonic=math.nan), "has not reached"),
        (replace(HERE, wall=math.inf), "has not reached"),
    ],
)
def test_file_counts_here_and_now_only(there: Situation, why: str) -> None:
    with pytest.raises(UnusableError, match=why):
        read(write([ENTRY], HERE, PLENTY), there)


@pytest.mark.parametrize(
    "entry",
    [
        replace(ENTRY, sent_at=HERE.monotonic + 1),
        replace(ENTRY, sent_at=math.nan),
        replace(ENTRY, key=Key("/metadata/é")),
    ],
)
def test_impossible_entry_means_a_damaged_file(entry: KeptEntry) -> None:
    with pytest.raises(UnusableError, match="it is damaged"):
        read(write([entry], HERE, PLENTY), HERE)


def test_upstream_that_is_no_text_means_a_damaged_file() -> None:
    content = write([], HERE, PLENTY)[: -sha256().digest_size].replace(b"http", b"\xff\xfe\xff\xfe")
    with pytest.raises(UnusableError, match="it is damaged"):
        read(sealed(content), HERE)


def test_file_of_another_version_or_program_says_so() -> None:
    content = bytearray(write([], HERE, PLENTY))
    content[len(handover.MAGIC)] += 1
    with pytest.raises(UnusableError, match="version 2, and this proxy reads version 1"):
        read(bytes(content), HERE)
    assert foreign(b"")
    with pytest.raises(UnusableError, match="not a handover file"):
        read(b"something else", HERE)


def test_size_is_bounded_and_what_has_room_is_kept() -> None:
    small, large = ENTRY, replace(ENTRY, body=bytes(500))
    content = write([small, large, small], HERE, 400)
    assert len(content) <= 400
    assert read(content, HERE) == (small, small)
