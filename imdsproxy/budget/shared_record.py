"""How budgets lie in a file that several processes share: bytes in, values out, and nothing believed.

    0     header: magic, version, the machine's boot id, when it was begun, checksum
    64    section 0: the general budget
    …     section 1: identity's own budget

A section is one record, written whole, with a number one higher than the last, and a checksum. It has the state of a
budget and the settings of those who share it, each setting once; whether a proxy with that setting is still there, a
lock of its own says (`shared_file`). All numbers are little-endian. A layout that differs gets another version.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from imdsproxy.budget.bucket import LOWEST_RATE, NOBODY, State

MAGIC = b"imdsproxy budget"
VERSION = 2
MOST_TOKENS = 128
MOST_SETTINGS = 16
"""Different settings of proxies that share one budget at the same time."""
LONGEST_LEASE = 3600.0
"""Seconds. What claims to last longer was not written by a proxy."""

UNKNOWN = 2**64 - 1
"""Holds the tokens of a state that was begun without knowing who holds which."""

_SLACK = 1.0
_HEADER = struct.Struct("<16sI16sdd")
_HEADER_SPACE = 64
_FIXED = struct.Struct("<QIddddd")
_TOKEN = struct.Struct("<dQd")
_SETTING = struct.Struct("<Id")
_SETTINGS_SPACE = MOST_SETTINGS * _SETTING.size
_CHECKSUM = struct.Struct("<I")
_RECORD_SPACE = _FIXED.size + _SETTINGS_SPACE + MOST_TOKENS * _TOKEN.size + _CHECKSUM.size
_SECTIONS = 2

SIZE = _HEADER_SPACE + _SECTIONS * _RECORD_SPACE
"""Bytes of the whole file."""


Setting = tuple[int, float]
"""What a proxy was told: requests, and the window in seconds."""

Settings = tuple[Setting | None, ...]
NO_SETTINGS: Settings = (None,) * MOST_SETTINGS


@dataclass(frozen=True, slots=True)
class Record:
    """A section's state, how many there have been before, and what those who share it were told."""

    state: State
    number: int
    settings: Settings = NO_SETTINGS


class UnknownVersionError(Exception):
    """The file is a budget, in a layout of another version; the text is that version's number."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says of itself."""

    boot: bytes
    """The machine's boot id (16 bytes): times of another start mean nothing."""
    begun_at: float
    rests_from: float
    """From then on the tokens of a section that nobody has written yet rest."""


def empty(found: Header) -> bytes:
    """Give a whole new file."""
    sealed = _sealed(_HEADER.pack(MAGIC, VERSION, found.boot, found.begun_at, found.rests_from))
    return sealed.ljust(SIZE, b"\0")


def foreign(content: bytes) -> bool:
    """Whether a file is somebody else's: it begins with something, and not with the magic or a piece of it."""
    return not MAGIC.startswith(content[: len(MAGIC)])


def read_header(content: bytes, boot: bytes, now: float) -> Header | None:
    """Give the header of a whole file; None where it is broken or no whole one. Raises UnknownVersionError.

    `boot` is the boot id of now; times of another start of the machine are not looked at.
    """
    sealed = _opened(content[: _HEADER.size + _CHECKSUM.size])
    if sealed is None:
        return None
    magic, version, written_in, begun_at, rests_from = _HEADER.unpack(sealed)
    if magic != MAGIC:
        return None
    if version != VERSION:
        raise UnknownVersionError(str(version))  # whose files may have another size
    if len(content) != SIZE:
        return None
    possible = begun_at <= now + _SLACK and rests_from <= now + LONGEST_LEASE + _SLACK
    return Header(written_in, begun_at, rests_from) if possible or written_in != boot else None


def blank(content: bytes, section: int) -> bool:
    """Whether nobody has written this section yet."""
    return not any(content[_offset(section) : _offset(section + 1)])


def begun(requests: int, window: float, rests_from: float) -> State:
    """Give the first state of a section: every token rests from then on, or is taken to be lent until then."""
    return State(requests, window, [rests_from] * requests, [UNKNOWN] * requests, [-math.inf] * requests)


def read(content: bytes, section: int, now: float) -> Record | None:
    """Give a section's record; None where it is none that a proxy can have written."""
    begin = _offset(section)
    if len(content) < begin + _RECORD_SPACE:
        return None
    number, requests, *figures = _FIXED.unpack_from(content, begin)
    if not 1 <= requests <= MOST_TOKENS:
        return None
    size = _FIXED.size + _SETTINGS_SPACE + requests * _TOKEN.size
    sealed = _opened(content[begin : begin + size + _CHECKSUM.size])
    if sealed is None:
        return None
    window, held, blocked_until, rate, rate_at = figures
    told = _SETTING.iter_unpack(sealed[_FIXED.size : _FIXED.size + _SETTINGS_SPACE])
    settings = tuple(setting if setting[0] else None for setting in told)
    tokens = list(_TOKEN.iter_unpack(sealed[_FIXED.size + _SETTINGS_SPACE :]))
    rests_from, holders, lent_at = (list(column) for column in zip(*tokens, strict=True))
    state = State(requests, window, rests_from, holders, lent_at, held, blocked_until, rate, rate_at)
    possible = _possible(state, now) and all(map(_possible_setting, settings))
    return Record(state, number, settings) if possible else None


def write(state: State, section: int, number: int, settings: Settings = NO_SETTINGS) -> tuple[int, bytes]:
    """Return the offset of a section's record, and the record."""
    # A process that was stopped for hours may have held a token as long.
    figures = (min(state.held, LONGEST_LEASE), state.blocked_until, state.rate, state.rate_at)
    parts = [_FIXED.pack(number, state.requests, state.window, *figures)]
    parts += [_SETTING.pack(*(setting or (0, 0.0))) for setting in settings]
    tokens = zip(state.rests_from, state.holders, state.lent_at, strict=True)
    return _offset(section), _sealed(b"".join([*parts, *(_TOKEN.pack(*token) for token in tokens)]))


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
        and all(lent_at <= soon for lent_at in state.lent_at)
        and all(rests_from <= (soon if holder == NOBODY else latest) for rests_from, holder in tokens)
    )


def _possible_setting(setting: Setting | None) -> bool:
    return setting is None or (setting[0] <= MOST_TOKENS and 0 < setting[1] <= LONGEST_LEASE)


def strictest(settings: Settings) -> Setting:
    """Return the fewest requests and the longest window of all settings; there has to be one."""
    told = [setting for setting in settings if setting is not None]
    return min(requests for requests, _ in told), max(window for _, window in told)


def with_own(settings: Settings, own: Setting, present: Callable[[int], bool]) -> tuple[Settings, int] | None:
    """Return the settings of those who are there, own included, and the place of the own one.

    Args:
        settings: Those that were found.
        own: This proxy's own.
        present: Whether another proxy that was told the setting in this place is there.

    Returns:
        None if there is no room, because so many proxies that are there were told so many different things.
    """
    there = [
        setting if setting is not None and (setting == own or present(place)) else None
        for place, setting in enumerate(settings)
    ]
    if own not in there:
        if None not in there:
            return None
        there[there.index(None)] = own
    return tuple(there), there.index(own)


def _offset(section: int) -> int:
    return _HEADER_SPACE + section * _RECORD_SPACE


def _sealed(content: bytes) -> bytes:
    return content + _CHECKSUM.pack(zlib.crc32(content))


def _opened(sealed: bytes) -> bytes | None:
    """Give what was sealed; None where the checksum, or all of it, is missing or wrong."""
    content, checksum = sealed[: -_CHECKSUM.size], sealed[-_CHECKSUM.size :]
    good = len(checksum) == _CHECKSUM.size and _CHECKSUM.unpack(checksum)[0] == zlib.crc32(content)
    return content if good and content else None
