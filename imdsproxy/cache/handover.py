"""Entries as a file for the next process of this machine, and back: the bytes, and how old each entry is by then.

    magic, version, the machine's boot id, both clocks at writing
    the upstream that answered
    for each entry: key, when its request was sent, header fields, body
    SHA-256 of all of that

All numbers are little-endian. A change of the layout gets a new version.

The file counts within one start of the machine, which the boot id names: a VM that was deallocated, resized or moved by
a redeployment starts again. Within it the monotonic clock states how long ago the file was written. It misses the time
in which the host had stopped the whole VM, and the wall clock can jump. The longer of both times is used, so an entry
can be taken for older than it is, and never for younger.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from imdsproxy.protocol.messages import Headers, Key, Response

MAGIC = b"imdsproxy handover"
VERSION = 1

_HEAD = struct.Struct("<18sI16sdd")
_SENT = struct.Struct("<dI")
_LENGTH = struct.Struct("<I")
_CHECKSUM = sha256().digest_size


class UnusableError(Exception):
    """The file cannot be used; the text says why, as the end of a sentence about it."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a file is bound to, and the current time."""

    boot: bytes
    """The machine's boot id, 16 bytes."""
    upstream: str
    monotonic: float
    wall: float


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """An answer of status 200, and when its request was sent, in monotonic seconds."""

    key: Key
    headers: Headers
    body: bytes = field(repr=False)
    sent_at: float

    @property
    def response(self) -> Response:
        """The answer."""
        return Response(200, self.headers, self.body)


def write(entries: Iterable[KeptEntry], here: Situation, most: int) -> bytes:
    """Return the bytes of a file with as many of the entries, in their order, as `most` bytes have room for."""
    content = bytearray(_HEAD.pack(MAGIC, VERSION, here.boot, here.monotonic, here.wall))
    content += _sized(here.upstream.encode())
    for entry in entries:
        fields = b"".join(_sized(part) for field in entry.headers for part in field)
        sent = _SENT.pack(entry.sent_at, len(entry.headers))
        part = _sized(entry.key.encode()) + sent + fields + _sized(entry.body)
        if len(content) + len(part) + _CHECKSUM <= most:
            content += part
    content += sha256(content).digest()
    return bytes(content)


def foreign(content: bytes) -> bool:
    """Return whether a file was made by another program: it does not begin with the magic."""
    return not content.startswith(MAGIC)


def read(content: bytes, here: Situation) -> tuple[KeptEntry, ...]:
    """Return the entries of a file, each with the moment of its request on the clock of this process.

    Raises:
        UnusableError: The file is foreign, damaged, or bound to something else.
    """
    if foreign(content):
        raise UnusableError("it is not a handover file; name another")
    if len(content) < _HEAD.size + _CHECKSUM:
        raise UnusableError("it is damaged")
    _, version, boot, written_at, wall = _HEAD.unpack_from(content)
    if version != VERSION:
        raise UnusableError(f"it is of version {version}, and this proxy reads version {VERSION}")
    if sha256(content[:-_CHECKSUM]).digest() != content[-_CHECKSUM:]:
        raise UnusableError("it is damaged")
    if boot != here.boot:
        raise UnusableError("it is of another start of this machine, or of another machine")
    reader = _Reader(content[:-_CHECKSUM], _HEAD.size)
    upstream = reader.text()
    if upstream != here.upstream:
        raise UnusableError(f"it has answers of {upstream}, and the upstream is {here.upstream}")
    passed = max(here.monotonic - written_at, here.wall - wall)
    if not (math.isfinite(passed) and here.monotonic >= written_at):
        raise UnusableError("it was written at a time that this machine's clock has not reached")
    shift = here.monotonic - passed - written_at
    entries = []
    while not reader.at_end:
        entry = reader.entry(shift)
        if not entry.sent_at - shift <= written_at:
            raise UnusableError("it is damaged")
        entries.append(entry)
    return tuple(entries)


def _sized(part: bytes) -> bytes:
    return _LENGTH.pack(len(part)) + part


class _Reader:
    """Reads values one after another. Raises UnusableError where one is cut off."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self._at = at

    @property
    def at_end(self) -> bool:
        return self._at == len(self._content)

    def entry(self, shift: float) -> KeptEntry:
        """Return the next entry. `shift` is added to the time of its request."""
        key = Key(self.text())
        if not key.isascii():
            raise UnusableError("it is damaged")
        sent_at, fields = _SENT.unpack(self._bytes(_SENT.size))
        headers = tuple((self._part(), self._part()) for _ in range(fields))
        return KeptEntry(key, headers, self._part(), sent_at + shift)

    def text(self) -> str:
        """Return the next text."""
        try:
            return self._part().decode()
        except UnicodeDecodeError:
            raise UnusableError("it is damaged") from None

    def _part(self) -> bytes:
        (length,) = _LENGTH.unpack(self._bytes(_LENGTH.size))
        return self._bytes(length)

    def _bytes(self, length: int) -> bytes:
        begin, self._at = self._at, self._at + length
        if self._at > len(self._content):
            raise UnusableError("it is damaged")
        return self._content[begin : self._at]
