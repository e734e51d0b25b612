"""The layout of a file through which several processes share budgets. Every value that is read is checked.

    0     header: magic, version, the machine's boot id, when the file was started, checksum
    64    section 0: the general budget
    …     section 1: identity's own budget

A section is one record with a checksum. It is written as a whole, with a number one higher than before. It has the
state of a budget, and the settings of the proxies that share it, each different setting once. A lock for each setting
shows whether a proxy with that setting still runs (`shared_file`). All numbers are little-endian. A change of the
layout gets a new version.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from imdsproxy.budget.bucket import LOWEST_RATE
from imdsproxy.budget.bucket_state import NO_LOAN, State

MAGIC = b"imdsproxy budget"
VERSION = 2
MOST_PERMITS = 128
MOST_SETTINGS = 16
"""Different settings of proxies that share one budget at the same time."""
LONGEST_LEASE = 3600.0
"""Seconds. A record with a longer time was not written by a proxy."""

UNKNOWN = 2**64 - 1
"""The holder of the permits of a new state whose loans are unknown."""

_SLACK = 1.0
_HEADER = struct.Struct("<16sI16sdd")
_HEADER_SPACE = 64
_FIXED = struct.Struct("<QIddddd")
_PERMIT = struct.Struct("<dQd")
_SETTING = struct.Struct("<Id")
_SETTINGS_SPACE = MOST_SETTINGS * _SETTING.size
_CHECKSUM = struct.Struct("<I")
_RECORD_SPACE = _FIXED.size + _SETTINGS_SPACE + MOST_PERMITS * _PERMIT.size + _CHECKSUM.size
_SECTIONS = 2

SIZE = _HEADER_SPACE + _SECTIONS * _RECORD_SPACE
"""Bytes of the whole file."""


Setting = tuple[int, float]
"""The settings of a proxy: requests, and the window in seconds."""

Settings = tuple[Setting | None, ...]
NO_SETTINGS: Settings = (None,) * MOST_SETTINGS


@dataclass(frozen=True, slots=True)
class Record:
    """A section: its state, its sequence number, and the settings of the proxies that share it."""

    state: State
    number: int
    settings: Settings = NO_SETTINGS


class UnknownVersionError(Exception):
    """The file has the layout of another version; the text is that version's number."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of the file."""

    boot: bytes
    """The machine's boot id (16 bytes). Times of another start of the machine are meaningless."""
    begun_at: float
    rests_from: float
    """The moment from which the permits of an unwritten section rest."""


def empty(found: Header) -> bytes:
    """Return the bytes of a new file."""
    sealed = _sealed(_HEADER.pack(MAGIC, VERSION, found.boot, found.begun_at, found.rests_from))
    return sealed.ljust(SIZE, b"\0")


def foreign(content: bytes) -> bool:
    """Return whether a file is not a budget: its content does not begin with the magic, or with a part of it."""
    return not MAGIC.startswith(content[: len(MAGIC)])


def read_header(content: bytes, boot: bytes, now: float) -> Header | None:
    """Return the header of a complete file, or None if the file is damaged or incomplete.

    Args:
        content: The bytes of the file.
        boot: The current boot id. Times of another start of the machine are not checked.
        now: The current monotonic time, in seconds.

    Raises:
        UnknownVersionError: The file is of another version.
    """
    sealed = _opened(content[: _HEADER.size + _CHECKSUM.size])
    if sealed is None or len(sealed) < _HEADER.size:  # a shorter file can have a right checksum, too
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
    """Return whether this section has never been written."""
    return not any(content[_offset(section) : _offset(section + 1)])


def begun(requests: int, window: float, rests_from: float) -> State:
    """Return the first state of a section, in which all permits rest from `rests_from` on."""
    return State(requests, window, [rests_from] * requests, [UNKNOWN] * requests, [-math.inf] * requests)


def read(content: bytes, section: int, now: float) -> Record | None:
    """Return a section's record, or None if no proxy can have written it."""
    begin = _offset(section)
    if len(content) < begin + _RECORD_SPACE:
        return None
    number, requests, *figures = _FIXED.unpack_from(content, begin)
    if not 1 <= requests <= MOST_PERMITS:
        return None
    size = _FIXED.size + _SETTINGS_SPACE + requests * _PERMIT.size
    sealed = _opened(content[begin : begin + size + _CHECKSUM.size])
    if sealed is None:
        return None
    window, held, blocked_until, rate, rate_at = figures
    stated = _SETTING.iter_unpack(sealed[_FIXED.size : _FIXED.size + _SETTINGS_SPACE])
    settings = tuple(setting if setting[0] else None for setting in stated)
    permits = list(_PERMIT.iter_unpack(sealed[_FIXED.size + _SETTINGS_SPACE :]))
    rests_from, holders, lent_at = (list(column) for column in zip(*permits, strict=True))
    state = State(requests, window, rests_from, holders, lent_at, held, blocked_until, rate, rate_at)
    possible = _possible(state, now) and all(map(_possible_setting, settings))
    return Record(state, number, settings) if possible else None


def write(state: State, section: int, number: int, settings: Settings = NO_SETTINGS) -> tuple[int, bytes]:
    """Return the offset of a section's record, and the record."""
    # A process that was stopped for hours may have held a permit for that long.
    figures = (min(state.held, LONGEST_LEASE), state.blocked_until, state.rate, state.rate_at)
    parts = [_FIXED.pack(number, state.requests, state.window, *figures)]
    parts += [_SETTING.pack(*(setting or (0, 0.0))) for setting in settings]
    permits = zip(state.rests_from, state.holders, state.lent_at, strict=True)
    return _offset(section), _sealed(b"".join([*parts, *(_PERMIT.pack(*permit) for permit in permits)]))


def _possible(state: State, now: float) -> bool:
    """Return whether a proxy can have written this state. The checksum finds damage; this finds forgery."""
    soon, latest = now + _SLACK, now + LONGEST_LEASE + _SLACK
    permits = zip(state.rests_from, state.holders, strict=True)
    return (
        0 < state.window <= LONGEST_LEASE
        and 0 <= state.held <= LONGEST_LEASE
        and LOWEST_RATE <= state.rate <= 1
        and state.blocked_until <= latest
        and state.rate_at <= soon
        and all(lent_at <= soon for lent_at in state.lent_at)
        and all(rests_from <= (soon if holder == NO_LOAN else latest) for rests_from, holder in permits)
    )


def _possible_setting(setting: Setting | None) -> bool:
    return setting is None or (setting[0] <= MOST_PERMITS and 0 < setting[1] <= LONGEST_LEASE)


def strictest(settings: Settings) -> Setting:
    """Return the fewest requests and the longest window of all settings. There must be at least one setting."""
    stated = [setting for setting in settings if setting is not None]
    return min(requests for requests, _ in stated), max(window for _, window in stated)


def with_own(settings: Settings, own: Setting, present: Callable[[int], bool]) -> tuple[Settings, int] | None:
    """Return the settings of all running proxies, including this one, and the place of its own setting.

    Args:
        settings: The settings in the record.
        own: This proxy's setting.
        present: Returns whether another proxy with the setting in this place runs.

    Returns:
        None if the running proxies have too many different settings.
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
    """Return the content without its checksum, or None if that is missing or wrong."""
    content, checksum = sealed[: -_CHECKSUM.size], sealed[-_CHECKSUM.size :]
    good = len(checksum) == _CHECKSUM.size and _CHECKSUM.unpack(checksum)[0] == zlib.crc32(content)
    return content if good and content else None
