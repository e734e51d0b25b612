"""Limits for the refreshes of one key: those that clients request, and those after a failed refresh."""

from __future__ import annotations

from cachetools import TTLCache

from imdsproxy.clock import Clock
from imdsproxy.protocol.messages import Key

_BYPASS_EVERY = 10.0
"""Seconds in which clients can renew one key at most once (`bypass_cache`, `no-cache`)."""
_REFRESH_PAUSE = 5.0
"""Seconds without another refresh of a key after one that brought no new entry."""


class RefreshGuard:
    """Remembers hashes of keys, because keys may be long. A collision only delays a request to IMDS."""

    def __init__(self, clock: Clock, max_keys: int = 4096) -> None:
        """Remember at most `max_keys` keys in each table."""
        self._bypassed: TTLCache[int, None] = TTLCache(max_keys, _BYPASS_EVERY, clock.monotonic)
        self._paused: TTLCache[int, bool] = TTLCache(max_keys, _REFRESH_PAUSE, clock.monotonic)

    def grant_bypass(self, key: Key) -> bool:
        """Return whether a client may renew this key now. If so, no other client may for `_BYPASS_EVERY` seconds."""
        if hash(key) in self._bypassed:
            return False
        self._bypassed[hash(key)] = None
        return True

    def withdraw_bypass(self, key: Key) -> None:
        """Forget a bypass that was granted and was not performed."""
        self._bypassed.pop(hash(key), None)

    def pause(self, key: Key, *, failed: bool) -> None:
        """Pause the refresh of a key.

        Args:
            key: The key of the entry.
            failed: Whether IMDS failed. Otherwise its answer was not one to store (403, a token about to expire).
        """
        self._paused[hash(key)] = failed

    def paused(self, key: Key) -> bool | None:
        """Return None if this key may be refreshed, otherwise whether IMDS had failed."""
        return self._paused.get(hash(key))
