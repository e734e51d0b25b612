"""The bound of the memory that requests and unread answers take, over all connections.

Every connection has a share of its own, which an ordinary request does not use up. Memory beyond the shares comes from
one pool. A request that needs more than the pool has left is refused. Long requests on many connections therefore
neither fill the memory nor prevent ordinary requests from being served.

A weight is the bytes that something takes in memory, rounded up (measured; `docs/memory.md`).
"""

from __future__ import annotations

SHARE = 8192
"""The weight that each connection may have without using the pool."""
POOL = 16 << 20
"""The weight that all connections together may have beyond their shares."""
MOST_BEHIND = 16
"""The answers, on all connections, that may wait until their clients have read the answers before them."""

# A field takes two bytes objects and a tuple. Objects above 512 bytes come from the C library's allocator.
_FIELD = 180
# A target is in memory as it arrived, in its canonical spelling, as a key, and as its parts.
_TARGET = 5
# A quotation mark takes three bytes in the canonical spelling. One character outside Latin-1 makes every character of
# its parameter take up to four bytes.
_TARGET_IN_NEED_OF_ESCAPES = 12
_PARAMETER = 250
# A body is collected in a buffer, and then copied to bytes.
_BODY = 2
_ESCAPES = frozenset(b'%"<>[\\]^`{|}')


class HeldBytes:
    """The pool of one server."""

    def __init__(self, most: int = POOL, most_behind: int = MOST_BEHIND) -> None:
        self._most = most
        self._behind = most_behind
        self.bytes = 0
        """The weight that connections hold beyond their shares."""

    def move(self, before: int, after: int) -> bool:
        """Change what a connection holds of the pool. Return False, and change nothing, if the pool is too small."""
        if after > before and self.bytes + after - before > self._most:
            return False
        self.bytes += after - before
        return True

    def wait_behind(self) -> bool:
        """Return whether one more answer may wait behind an unread one. If so, `go_on` must be called later."""
        if self._behind <= 0:
            return False
        self._behind -= 1
        return True

    def go_on(self) -> None:
        """Note that an answer no longer waits."""
        self._behind += 1


def weight_of_field(name: bytes, value: bytes) -> int:
    """Return the weight of a header field."""
    return _FIELD + weight_of_part(len(name) + len(value))


def weight_of_part(length: int) -> int:
    """Return the weight of `length` bytes of a head, or of a part that the parser has not delivered yet."""
    return length * 3 // 2


def weight_of_target(target: bytes) -> int:
    """Return the weight of a request target, in all forms that are in memory until the request is answered."""
    each = _TARGET if _ESCAPES.isdisjoint(target) else _TARGET_IN_NEED_OF_ESCAPES
    return each * len(target) + _PARAMETER * (target.count(b"&") + 1)


def weight_of_body(length: int) -> int:
    """Return the weight of `length` bytes of a body."""
    return _BODY * length
