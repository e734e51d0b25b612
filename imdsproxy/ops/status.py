"""The status of a running proxy: what `/-/status`, `/-/status.json` and `imdsproxy status` show.

The names and units of these values are those of `/-/status.json`, which `docs/status.md` describes. A field may be
added under the same `SCHEMA`. One that changes its meaning or goes away needs the next number. Durations are seconds.
No value holds a body, a token or the name of an identity. Of a query, only the api-version and a token's audience are
there.

They are named tuples, because it takes five times as long to make a dataclass, and these are made at each start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from imdsproxy.config import SettingInForce

SCHEMA = 1
"""The version of the shape."""


class Listening(NamedTuple):
    """A place where the proxy listens."""

    address: str
    """A URL, or `unix:` and a path."""
    admin: bool
    """Whether only the pages under `/-/` are served there."""


class ProxyStatus(NamedTuple):
    """The process."""

    version: str
    pid: int
    uptime: float
    ready: bool
    obstacle: str | None
    """Why it is not ready; None if it is."""
    upstream: str
    chained: bool
    """Whether the upstream is another imdsproxy, which keeps the budget."""
    listeners: tuple[Listening, ...]
    settings: tuple[SettingInForce, ...]
    log_lines_dropped: int


class FailureStatus(NamedTuple):
    """A failure."""

    ago: float
    status: str
    """IMDS's status, or the word for the failure, as in the metrics."""
    words: str


class ImdsStatus(NamedTuple):
    """What is known of IMDS."""

    state: str
    """`unknown`, `answering`, `updating`, `throttling` or `failing`."""
    since: float
    """How long it has been in this state."""
    last_success: float | None
    """How long ago it answered without a failure; None if it never has."""
    last_failure: FailureStatus | None
    last_hour: Mapping[str, int]
    """Requests sent in the last hour, by status."""


class RequestsStatus(NamedTuple):
    """The requests of clients since the start."""

    answered: int
    by_outcome: Mapping[str, int]
    sent_to_imds: int
    """Requests sent to IMDS, with retries and background refreshes."""
    saved: int
    """Requests that IMDS was spared: those of clients that were not refused, less those that were sent."""


class BudgetStatus(NamedTuple):
    """One class of the budget."""

    name: str
    permits: int
    window: float
    free: int
    waiting: int
    """Requests of clients that wait for a permit."""
    estimated_wait: float
    """How long a request of another client would wait."""
    refused: int
    """Requests refused because no permit was free in time, since the start."""


class ClientStatus(NamedTuple):
    """A client and what it has cost since it is listed."""

    name: str
    sent: int
    """Requests to IMDS that it caused."""
    requests: int
    """Its requests that no fresh hit answered."""
    refused: int
    """Those of its requests that were refused."""


class EntryStatus(NamedTuple):
    """A cached entry, without its query."""

    path: str
    endpoint: str
    api_version: str
    status: int
    age: int
    fresh: float
    """How long it stays fresh; negative if it is stale."""
    usable: float
    """How long it may be used at all."""
    bytes: int
    hits: int


class CacheStatus(NamedTuple):
    """The cache."""

    entries: int
    bytes: int
    max_bytes: int
    evictions: int
    """Entries evicted because the cache was full, since the start."""
    listed: tuple[EntryStatus, ...]
    """The entries with the most hits, at most as many as `status_reader.MOST_ENTRIES`."""


class TokenStatus(NamedTuple):
    """An access token that is cached, or that the proxy could not get."""

    audience: str
    identity: str
    """`default`, or eight hexadecimal digits of SHA-256 over the identity in lower case."""
    expires: float | None
    """The remaining life; None if no token is cached."""
    renewal: float | None
    """How long until the first request renews it; None if no token is cached."""
    failure: FailureStatus | None
    """The failure of the latest request for it; None if that succeeded."""


class EventsStatus(NamedTuple):
    """The scheduled events in IMDS's latest answer to a client."""

    ago: float
    pending: Mapping[str, int]
    """Events by type."""


class HistoryStatus(NamedTuple):
    """The last minutes in periods of equal length, the oldest first, the current one last."""

    period: float
    outcomes: tuple[Mapping[str, int], ...]
    budget: tuple[Mapping[str, int], ...]
    """`sent` and `refused`."""


class Status(NamedTuple):
    """Everything, at one moment."""

    schema: int
    time: str
    """RFC 3339, UTC."""
    proxy: ProxyStatus
    imds: ImdsStatus
    requests: RequestsStatus
    budget: tuple[BudgetStatus, ...]
    clients: tuple[ClientStatus, ...]
    """The ten clients that caused the most requests to IMDS since the start."""
    cache: CacheStatus
    tokens: tuple[TokenStatus, ...]
    events: EventsStatus | None
    """None until a client has asked for scheduled events."""
    history: HistoryStatus


def as_json(status: Status) -> bytes:
    """Return the status as JSON in ASCII, with durations in milliseconds' precision.

    `<`, `>` and `&` are escaped, so that the text stays text inside a page.
    """
    text = json.dumps(_plain(status), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("ascii")


def _plain(value: object) -> object:
    """Return a value as JSON has it. JSON has no infinity, which becomes null."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value
