"""How `CACHE_MAX_BYTES` is divided: every table that grows with clients' requests has a share of it.

A bound on the number of items would bound no memory, because clients decide how large an item is. Each table
therefore counts bytes, rounded up, and the shares add up to the setting.
"""

from __future__ import annotations

from dataclasses import dataclass

_PARTS = 64
_BYTES_PER_KEY = 260
"""The bytes of a hash and its time in a `TTLCache` (measured: 244)."""
_GUARD_TABLES = 3
_FEWEST_KEYS = 64
_MOST_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Shares:
    """Bytes for each table."""

    entries: int
    """Answers, their keys and their rendered hits: 52/64."""
    heads: int
    """Known targets and fields of heads, and marks of fields seen once: 8/64."""
    readings: int
    """Readings of targets and Host fields: 1/64."""
    routes: int
    """The policy's decisions about targets: 1/64."""
    guards: int
    """Hashes of keys that a client renewed, that failed, or that may not be derived: 2/64."""

    @property
    def keys(self) -> int:
        """How many keys each of the guards' tables may hold.

        There is a minimum, because clients that bypass the cache must not reach IMDS repeatedly.
        """
        return min(_MOST_KEYS, max(_FEWEST_KEYS, self.guards // _GUARD_TABLES // _BYTES_PER_KEY))


def divide(max_bytes: int) -> Shares:
    """Divide the setting. The remainder of rounding goes to the entries."""
    heads, guards = 8 * max_bytes // _PARTS, 2 * max_bytes // _PARTS
    readings = routes = max_bytes // _PARTS
    return Shares(max_bytes - heads - guards - readings - routes, heads, readings, routes, guards)
