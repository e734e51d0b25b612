"""The entries that a proxy leaves for the next process, and taking over those that the last one left.

What may be kept is a list of what is allowed: rows of the endpoint table that say so (`policy.endpoints`). No access
token, nothing else of identity, no attested document and no scheduled event is among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imdsproxy.cache.freshness import make_entry
from imdsproxy.cache.handover import KeptEntry
from imdsproxy.protocol.messages import Key
from imdsproxy.proxy.proxy import Proxy


def kept_entries(proxy: Proxy) -> Iterator[KeptEntry]:
    """Yield the entries for the next process. A part of another entry is left out, because the whole is kept."""
    for slot, entry in proxy.store.slots():
        if entry.response.status == 200 and entry.token is None and not entry.derived and _may_be_kept(proxy, slot.key):
            yield KeptEntry(slot.key, entry.response.headers, entry.response.body, entry.sent_at)


def take_over(proxy: Proxy, kept: Iterable[KeptEntry]) -> int:
    """Store the entries that the rules of this process allow, and return how many.

    Each gets the lifetimes that it would get now, from when its request was sent.
    """
    now = proxy.now()
    count = 0
    for each in kept:
        cacheable = proxy.cacheable(each.key)
        if cacheable is None:
            continue
        request, decision = cacheable
        if not decision.handed_over or proxy.fetcher.failure_rules.judge(request, each.response).failed:
            continue
        entry = make_entry(each.response, decision.lifetimes, each.sent_at, now)
        count += entry is not None and proxy.fetches.store_older(request.target.key, entry)
    return count


def _may_be_kept(proxy: Proxy, key: Key) -> bool:
    cacheable = proxy.cacheable(key)
    return cacheable is not None and cacheable[1].handed_over
