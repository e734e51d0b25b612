"""How often one key may be asked again: by a client's wish, and after a refresh that brought nothing."""

from __future__ import annotations

from cachetools import TTLCache

from imdsproxy.clock import Clock
from imdsproxy.protocol.messages import Key

_BYPASS_EVERY = 10.0
"""Seconds in which one key is renewed by a client's wish at most once."""
_REFRESH_PAUSE = 5.0
"""Seconds without a refresh of a key after one that brought nothing: serving it stale asks no more of IMDS."""


class RefreshGuard:
    """Remembers by the key's hash, because keys may be long; a collision only makes a request to IMDS later."""

    def __init__(self, clock: Clock, max_keys: int = 4096) -> None:
        """Remember at most `max_keys` keys in each table."""
        self._bypassed: TTLCache[int, None] = TTLCache(max_keys, _BYPASS_EVERY, clock.monotonic)
        self._paused: TTLCache[int, bool] = TTLCache(max_keys, _REFRESH_PAUSE, clock.monotonic)

    def grant_bypass(self, key: Key) -> bool:
        """Whether a client's wish may renew this key now; if so, the next one waits its time."""
        if hash(key) in self._bypassed:
            return False
        self._bypassed[hash(key)] = None
        return True

    def withdraw_bypass(self, key: Key) -> None:
        """Forget a bypass that was granted and did not happen."""
        self._bypassed.pop(hash(key), None)

    def pause(self, key: Key, *, failed: bool) -> None:
        """Pause the refresh of a key; `failed` if IMDS failed, else its answer was none to keep (403, a late token)."""
        self._paused[hash(key)] = failed

    def paused(self, key: Key) -> bool | None:
        """Return None if this key may be refreshed, else whether IMDS had failed."""
        return self._paused.get(hash(key))
