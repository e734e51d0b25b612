"""How `CACHE_MAX_BYTES` is divided: every table that grows with what clients ask for has a share of it.

A table whose bound is a number of items would be bounded in nothing, because clients decide how large an item is.
Each table therefore counts bytes, rounded up, and the shares add up to the setting.
"""

from __future__ import annotations

from dataclasses import dataclass

_PARTS = 64
_BYTES_PER_KEY = 260
"""What a hash and its time take in a `TTLCache` (measured: 244)."""
_GUARD_TABLES = 3
_FEWEST_KEYS = 64
_MOST_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Shares:
    """Bytes for each table."""

    entries: int
    """Answers, their keys and their rendered hits: 52/64."""
    heads: int
    """Known heads, and hashes of heads seen once: 8/64."""
    readings: int
    """What targets and Host fields say: 1/64."""
    routes: int
    """What the policy decides about a target: 1/64."""
    guards: int
    """Hashes of keys that were renewed by a client's wish, failed, or were denied a derived answer: 2/64."""

    @property
    def keys(self) -> int:
        """How many keys each of the guards' tables may hold.

        A few even if there is no room, since a client's wish must not reach IMDS again and again.
        """
        return min(_MOST_KEYS, max(_FEWEST_KEYS, self.guards // _GUARD_TABLES // _BYTES_PER_KEY))


def divide(max_bytes: int) -> Shares:
    """Divide the setting; what rounding leaves over goes to the entries."""
    heads, guards = 8 * max_bytes // _PARTS, 2 * max_bytes // _PARTS
    readings = routes = max_bytes // _PARTS
    return Shares(max_bytes - heads - guards - readings - routes, heads, readings, routes, guards)
