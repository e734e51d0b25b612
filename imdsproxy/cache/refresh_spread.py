"""How long before the end of its freshness an entry is refreshed in the background.

Machines that begin together would refresh together, again and again: all nodes of a cluster ask for their access
tokens in the same second, once an hour. Each process therefore refreshes a key a little early, by a share of the
entry's freshness that differs by process and key. The periods differ as well, so the machines drift apart.

Early is the only direction. No deadline of an entry moves, so nothing is served longer than without it, and an answer
in that time is still fresh. An entry that is never refreshed in the background keeps its whole lifetime, because a
client would wait for its earlier end.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

from imdsproxy.cache.freshness import Entry
from imdsproxy.protocol.messages import Key

LARGEST_SHARE = 0.1
"""The largest share of an entry's freshness by which it is refreshed early. It costs a twentieth more refreshes."""
_BYTES = 8
_LARGEST = float(2**64)


def head_start(key: Key, seed: bytes, bound: float) -> float:
    """Return the seconds by which a key is refreshed early: from 0 up to `LARGEST_SHARE` of `bound`.

    Args:
        key: The key of the entry.
        seed: The seed of this process, of at most 64 bytes. Without one the result is 0.
        bound: For how many seconds the entry is fresh.
    """
    if not seed or bound <= 0:
        return 0.0
    drawn = int.from_bytes(blake2b(key.encode(), digest_size=_BYTES, key=seed).digest(), "big")
    return bound * LARGEST_SHARE * (drawn / _LARGEST)


def spread(entry: Entry, key: Key, seed: bytes) -> Entry:
    """Return the entry with the moment of its early refresh, if it is refreshed in the background at all."""
    early = head_start(key, seed, entry.fresh_until - entry.sent_at)
    if not early or entry.revalidate_until <= entry.fresh_until:
        return entry
    return replace(entry, refresh_from=entry.fresh_until - early)
