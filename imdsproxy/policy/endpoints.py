"""The endpoint table: what IMDS serves, by which budget, and how long an answer may be used by default.

The default lifetimes are those in the README. `policy` applies the user's settings to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.messages import BudgetClass, Target

Segments = tuple[str, ...]
"""A path's segments in lower case."""

_HOUR = 3600.0

STABLE_LEAVES = frozenset(
    {
        *("vmid", "location", "zone", "name", "subscriptionid", "resourceid", "resourcegroupname"),
        *("azenvironment", "ostype", "publisher", "offer", "sku", "version", "vmsize", "vmscalesetname"),
        *("placementgroupid", "platformfaultdomain", "platformupdatedomain"),
    }
)
"""Values under `/metadata/instance/compute` that change only with the VM's placement or its size, if ever."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the endpoint table, for a path and all below it."""

    path: Segments
    endpoint: str
    """The `endpoint` label of its metrics."""
    fresh: float = 0.0
    """Seconds; 0 means never cached."""
    refreshes: bool = False
    """Whether it is refreshed in the background, for as long again as it was fresh."""
    stale_if_error: float = 0.0
    """Seconds after `fresh`."""
    fixed: bool = False
    """Whether no setting overrides its lifetimes."""
    budget: BudgetClass = BudgetClass.GENERAL
    token: bool = False
    """Whether the answer is an access token, whose own life bounds its lifetimes."""
    slow: bool = False
    """Whether IMDS may take two minutes to answer (Microsoft's scheduled-events page)."""
    handed_over: bool = False
    """Whether its entries may be kept for the next process: no credential, no proof, no event."""


def split(path: str) -> Segments:
    """Return a path's segments."""
    return tuple(segment for segment in path.lower().split("/") if segment)


def within(segments: Segments, prefixes: tuple[Segments, ...]) -> bool:
    """Return whether a path is one of these or below one of them."""
    return any(segments[: len(prefix)] == prefix for prefix in prefixes)


def _row(path: str, endpoint: str, fresh: float = 0.0, stale: float = 0.0) -> Row:
    return Row(split(path), endpoint, fresh, stale_if_error=stale)


def _description(path: str, endpoint: str, fresh: float) -> Row:
    """Return the row of a document that describes the VM."""
    return Row(split(path), endpoint, fresh, refreshes=True, stale_if_error=_HOUR, handed_over=True)


_IDENTITY = BudgetClass.IDENTITY
_TABLE = (
    _row("/metadata", "other"),
    # Not handed over, because each process asks for it at its start to learn whether IMDS answers.
    _row("/metadata/versions", "versions", _HOUR, 24 * _HOUR),
    _description("/metadata/instance", "instance", 60),
    *(_description(f"/metadata/instance/compute/{leaf}", "instance", 300) for leaf in sorted(STABLE_LEAVES)),
    _description("/metadata/instance/network", "instance", 30),
    _description("/metadata/loadbalancer", "loadbalancer", 30),
    _row("/metadata/attested", "attested", 60),
    Row(split("/metadata/scheduledevents"), "scheduledevents", fresh=1, slow=True),
    Row(split("/metadata/identity"), "identity", fixed=True, budget=_IDENTITY),
    Row(split("/metadata/identity/info"), "identity-info", 300, stale_if_error=_HOUR, budget=_IDENTITY),
    Row(split("/metadata/identity/oauth2/token"), "token", 1, budget=_IDENTITY, token=True),
)
_BY_PATH = {row.path: row for row in _TABLE}
_SINGLE_DOCUMENTS = frozenset({"versions", "identity-info", "token"})
"""Endpoints with nothing below their path."""
_PARTS = frozenset({"compute", "network"})

# Microsoft's scheduled-events page, and clients' sources, 2026.
_EVENTS_VERSIONS = frozenset(
    {
        *("2017-03-01", "2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"),
        "2024-07-09",
    }
)

ENDPOINTS = frozenset(row.endpoint for row in _TABLE) | {"none"}
"""Every value that the `endpoint` label of a metric can have."""


def row_of(segments: Segments) -> Row:
    """Return the row of a path under `/metadata`: that of the longest prefix.

    Nothing is known of a path below a single document, so the row of the document's parent applies.
    """
    row = _longest(segments)
    return _longest(row.path[:-1]) if row.endpoint in _SINGLE_DOCUMENTS and row.path != segments else row


def _longest(segments: Segments) -> Row:
    for length in range(len(segments), 1, -1):
        row = _BY_PATH.get(segments[:length])
        if row is not None:
            return row
    return _BY_PATH[("metadata",)]


def share_of(target: Target, endpoint: str) -> str:
    """Return the name under which a request counts for its endpoint's share of the permits.

    The parts of the instance document count on their own, because one of them can hang while the others answer.
    """
    part = target.segments[2:3]
    return f"{endpoint} {part[0]}" if endpoint == "instance" and part and part[0] in _PARTS else endpoint


def is_usual(target: Target) -> bool:
    """Return whether this is a scheduled-events target that clients are known to ask for: a version, nothing else."""
    return (
        len(target.parameters) == 1
        and target.parameters[0][0] == "api-version"
        and (target.parameters[0][1] in _EVENTS_VERSIONS)
    )
