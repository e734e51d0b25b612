"""How budgets lie in a file that several processes share: bytes in, values out, and nothing believed.

    0     header: magic, version, the machine's boot id, checksum
    64    section 0 (the general budget): two records
    …     section 1 (identity's own budget): two records

A record is written over the older of its section's two, whole, with a number one higher and a checksum. Whoever is
killed while writing thus leaves the newer one valid, as if it had not begun. All numbers are little-endian. A layout
that differs gets another version.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from imdsproxy.budget import LOWEST_RATE, NOBODY, State

MAGIC = b"imdsproxy budget"
VERSION = 1
MOST_TOKENS = 128
LONGEST_LEASE = 3600.0
"""Seconds. What claims to last longer was not written by a proxy."""

UNKNOWN = 2**64 - 1
"""Holds the tokens of a state that was begun without knowing who holds which."""

_SLACK = 1.0
_HEADER = struct.Struct("<16sI16sd")
_HEADER_SPACE = 64
_FIXED = struct.Struct("<QIdddddd")
_TOKEN = struct.Struct("<dQ")
_CHECKSUM = struct.Struct("<I")
_RECORD_SPACE = _FIXED.size + MOST_TOKENS * _TOKEN.size + _CHECKSUM.size
_SECTIONS = 2

SIZE = _HEADER_SPACE + _SECTIONS * 2 * _RECORD_SPACE
"""Bytes of the whole file."""


@dataclass(frozen=True, slots=True)
class Record:
    """A section's valid state, and where the next one goes."""

    state: State
    number: int
    place: int
    """Which of the two records it is: 0 or 1."""


class UnknownVersionError(Exception):
    """The file is a budget, in a layout of another version; the text is that version's number."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says of itself."""

    boot: bytes
    """The machine's boot id (16 bytes): times of another start mean nothing."""
    rests_from: float
    """From then on the tokens of a section that nobody has written yet rest."""


def header(boot: bytes, rests_from: float) -> bytes:
    """Give the beginning of a new file, all else of which is zero."""
    return _sealed(_HEADER.pack(MAGIC, VERSION, boot, rests_from)).ljust(_HEADER_SPACE, b"\0")


def foreign(content: bytes) -> bool:
    """Whether a file is somebody else's: it begins with something, and not with the magic or a piece of it."""
    return not MAGIC.startswith(content[: len(MAGIC)])


def read_header(content: bytes, now: float) -> Header | None:
    """Give the header of a whole file; None where it is broken or no whole one. Raises UnknownVersionError."""
    sealed = _opened(content[: _HEADER.size + _CHECKSUM.size])
    if sealed is None or len(content) != SIZE:
        return None
    magic, version, boot, rests_from = _HEADER.unpack(sealed)
    if magic != MAGIC:
        return None
    if version != VERSION:
        raise UnknownVersionError(str(version))
    return Header(boot, rests_from) if rests_from <= now + LONGEST_LEASE + _SLACK else None


def blank(content: bytes, section: int) -> bool:
    """Whether nobody has written this section yet."""
    return not any(content[_offset(section, 0) : _offset(section + 1, 0)])


def begun(requests: int, window: float, rests_from: float) -> State:
    """Give the first state of a section: every token rests from then on, or is taken to be lent until then."""
    return State(requests, window, [rests_from] * requests, [UNKNOWN] * requests)


def read(content: bytes, section: int, now: float) -> Record | None:
    """Give the newer of a section's valid records; None if neither is."""
    found = [record for place in (0, 1) if (record := _read_record(content, section, place, now)) is not None]
    return max(found, key=lambda record: record.number, default=None)


def write(state: State, section: int, before: Record | None) -> tuple[int, bytes]:
    """Give the record that follows `before`, and the offset at which it goes."""
    place = 0 if before is None else 1 - before.place
    number = 1 if before is None else before.number + 1
    figures = (state.held, state.blocked_until, state.rate, state.rate_at, state.wanted_until)
    parts = [_FIXED.pack(number, state.requests, state.window, *figures)]
    parts += [_TOKEN.pack(*token) for token in zip(state.rests_from, state.holders, strict=True)]
    return _offset(section, place), _sealed(b"".join(parts))


def _read_record(content: bytes, section: int, place: int, now: float) -> Record | None:
    begin = _offset(section, place)
    if len(content) < begin + _RECORD_SPACE:
        return None
    number, requests, *figures = _FIXED.unpack_from(content, begin)
    if not 1 <= requests <= MOST_TOKENS:
        return None
    size = _FIXED.size + requests * _TOKEN.size
    sealed = _opened(content[begin : begin + size + _CHECKSUM.size])
    if sealed is None:
        return None
    window, held, blocked_until, rate, rate_at, wanted_until = figures
    tokens = list(_TOKEN.iter_unpack(sealed[_FIXED.size :]))
    rests_from, holders = [token[0] for token in tokens], [token[1] for token in tokens]
    state = State(requests, window, rests_from, holders, held, blocked_until, rate, rate_at, wanted_until)
    return Record(state, number, place) if _possible(state, now) else None


def _possible(state: State, now: float) -> bool:
    """Whether a proxy can have written this. A checksum shows what is broken, and this what is made up."""
    soon, latest = now + _SLACK, now + LONGEST_LEASE + _SLACK
    tokens = zip(state.rests_from, state.holders, strict=True)
    return (
        0 < state.window <= LONGEST_LEASE
        and 0 <= state.held <= LONGEST_LEASE
        and LOWEST_RATE <= state.rate <= 1
        and state.blocked_until <= latest
        and state.rate_at <= soon
        and state.wanted_until <= soon + state.window
        and all(rests_from <= (soon if holder == NOBODY else latest) for rests_from, holder in tokens)
    )


def _offset(section: int, place: int) -> int:
    return _HEADER_SPACE + (2 * section + place) * _RECORD_SPACE


def _sealed(content: bytes) -> bytes:
    return content + _CHECKSUM.pack(zlib.crc32(content))


def _opened(sealed: bytes) -> bytes | None:
    """Give what was sealed; None where the checksum, or all of it, is missing or wrong."""
    content, checksum = sealed[: -_CHECKSUM.size], sealed[-_CHECKSUM.size :]
    good = len(checksum) == _CHECKSUM.size and _CHECKSUM.unpack(checksum)[0] == zlib.crc32(content)
    return content if good and content else None
