"""How much memory clients can take by what they send and do not read, over all connections.

Every connection has a share of its own, which an ordinary request does not use up. What requests and unread answers
take beyond it comes out of one pool. Whoever needs more than is left there is refused, so that long requests on many
connections neither fill the memory nor keep ordinary ones from being served.

A weight is the bytes that something takes in memory, rounded up (measured; `docs/memory.md`).
"""

from __future__ import annotations

SHARE = 8192
"""Weight that each connection may have without regard to the others."""
POOL = 16 << 20
"""Weight that all connections may have together beyond their shares."""
MOST_BEHIND = 16
"""Answers that may wait, on all connections, until the client has taken the answer before."""

# A field is two objects and a pair of them; what is longer than 512 bytes comes from the C library's allocator.
_FIELD = 180
# A target lies in memory as it came, in its canonical spelling, as a key, and taken apart.
_TARGET = 5
# A quotation mark becomes three bytes in the canonical spelling, and one character outside Latin-1 makes every
# character of its parameter take four.
_TARGET_IN_NEED_OF_ESCAPES = 12
_PARAMETER = 250
# A body is collected, and then handed on as bytes.
_BODY = 2
_ESCAPES = frozenset(b'%"<>[\\]^`{|}')


class HeldBytes:
    """The pool of one server, from which its connections take."""

    def __init__(self, most: int = POOL, most_behind: int = MOST_BEHIND) -> None:
        self._most = most
        self._behind = most_behind
        self.bytes = 0
        """What connections hold beyond their shares."""

    def move(self, before: int, after: int) -> bool:
        """Replace what a connection holds beyond its share; return False, and change nothing, if there is no room."""
        if after > before and self.bytes + after - before > self._most:
            return False
        self.bytes += after - before
        return True

    def wait_behind(self) -> bool:
        """Return whether one more answer may wait behind an answer that is not taken; then `go_on` is due."""
        if self._behind <= 0:
            return False
        self._behind -= 1
        return True

    def go_on(self) -> None:
        """Note that an answer waits no more."""
        self._behind += 1


def weight_of_field(name: bytes, value: bytes) -> int:
    """Return the weight of a header field."""
    return _FIELD + weight_of_part(len(name) + len(value))


def weight_of_part(length: int) -> int:
    """Return the weight of so many bytes of a head, or of a part of one that the parser keeps to itself."""
    return length * 3 // 2


def weight_of_target(target: bytes) -> int:
    """Return the weight of a request target, in all forms in which it is kept until the request is answered."""
    each = _TARGET if _ESCAPES.isdisjoint(target) else _TARGET_IN_NEED_OF_ESCAPES
    return each * len(target) + _PARAMETER * (target.count(b"&") + 1)


def weight_of_body(length: int) -> int:
    """Return the weight of so many bytes of a body."""
    return _BODY * length
