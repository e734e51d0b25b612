"""Warnings about settings that are dangerous or probably a mistake. They are logged once, at start.

An invalid value is refused (`parsers`). A valid value that may have an unwanted effect gets a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from imdsproxy.protocol.messages import IMDS_HOST
from imdsproxy.settings.parsers import shown

if TYPE_CHECKING:
    from imdsproxy.settings.model import Settings

# Azure's limits a VM and second (Microsoft's IMDS page, 2025).
_GENERAL_RATE = 5
_IDENTITY_RATE = 20
# A Preempt event comes 30 seconds before its effect, often less (Microsoft's scheduled-events page).
_LONGEST_EVENTS_TTL = 5
_LONGEST_NEGATIVE_TTL = 300
_SMALLEST_CACHE = 65_536
_ALIKE = 0.7

# Paths below these are not listed, because Azure adds to them.
_OPEN = frozenset({"/metadata/instance", "/metadata/scheduledevents", "/metadata/loadbalancer", "/metadata/versions"})
_ENDPOINTS = (
    *("/metadata", "/metadata/versions", "/metadata/instance", "/metadata/instance/compute"),
    *("/metadata/instance/network", "/metadata/attested", "/metadata/attested/document", "/metadata/identity"),
    *("/metadata/identity/oauth2", "/metadata/identity/oauth2/token", "/metadata/identity/info"),
    *("/metadata/identity/getplatformmetadata", "/metadata/identity/issuecredential"),
    *("/metadata/scheduledevents", "/metadata/loadbalancer", "/metadata/reprovisiondata"),
)
_INSTANCE = ("/metadata/instance/compute", "/metadata/instance/network")
_EVENTS = "/metadata/scheduledevents"


def doubts(settings: Settings) -> tuple[str, ...]:
    """Return a line for each doubtful setting, in the order of the settings."""
    return (*_limits(settings), *_paths(settings), *_lifetimes(settings), *_guards(settings))


def _limits(settings: Settings) -> Iterator[str]:
    rates = (
        ("BUDGET_REQUESTS", settings.budget_requests, _GENERAL_RATE),
        ("IDENTITY_BUDGET_REQUESTS", settings.identity_budget_requests or 0, _IDENTITY_RATE),
    )
    for name, requests, limit in rates:
        # All requests of a window may come in one second, and a shorter window brings several times as many.
        if settings.upstream_address.host == IMDS_HOST and requests > limit * min(1.0, settings.budget_window):
            yield (
                f"IMDSPROXY_{name}={requests} in IMDSPROXY_BUDGET_WINDOW={settings.budget_window:g} s is more than "
                f"IMDS allows ({limit} a second); it will answer 429"
            )
    unlikely = sorted(status for status in settings.retry_statuses if status < 404 or status in {405, 411, 413, 414})
    if unlikely:
        yield (
            f"IMDSPROXY_RETRY_STATUSES has {', '.join(map(str, unlikely))}: IMDS answers invalid requests so, "
            "and a retry only takes another permit"
        )
    if settings.cache_max_bytes < _SMALLEST_CACHE:
        yield f"IMDSPROXY_CACHE_MAX_BYTES={settings.cache_max_bytes} is too small for most documents of IMDS"


def _paths(settings: Settings) -> Iterator[str]:
    lists: tuple[tuple[str, Iterable[str]], ...] = (
        ("TTL", [path for path, _ in settings.ttl]),
        ("STALE_IF_ERROR", [path for path, _ in settings.stale_if_error]),
        ("ALLOW", settings.allow),
        ("DENY", settings.deny),
        ("WARMUP", [target.lower().partition("?")[0].removesuffix("/") for target in settings.warmup]),
    )
    for name, paths in lists:
        for path in paths:
            near = _unknown(path)
            if near is not None:
                remedy = f"did you mean {near}?" if near else "Azure documents no endpoint of this name"
                yield f"IMDSPROXY_{name}: {shown(path)} matches no known endpoint; {remedy}"
    for path in settings.allow:
        if any(_within(path, denied) for denied in settings.deny):
            yield f"IMDSPROXY_ALLOW: {shown(path)} has no effect, because IMDSPROXY_DENY refuses it"
    if not settings.allow:
        yield "IMDSPROXY_ALLOW is empty: every request for metadata is refused"


def _lifetimes(settings: Settings) -> Iterator[str]:
    for path, seconds in settings.ttl:
        if _within(path, _EVENTS) and seconds > _LONGEST_EVENTS_TTL:
            yield (
                f"IMDSPROXY_TTL: {path}={seconds:g} hides a scheduled event for up to that many seconds, "
                "and a Preempt event takes effect within 30 seconds"
            )
    for path, seconds in settings.stale_if_error:
        if _within(path, _EVENTS) and seconds > 0:
            yield f"IMDSPROXY_STALE_IF_ERROR: {path}={seconds:g} serves scheduled events that may be over"
    if settings.negative_ttl > _LONGEST_NEGATIVE_TTL:
        yield (
            f"IMDSPROXY_NEGATIVE_TTL={settings.negative_ttl:g} keeps a 400 or 404 of IMDS for that many seconds, "
            "even if IMDS has the document by then"
        )


def _guards(settings: Settings) -> Iterator[str]:
    if settings.require_metadata_header == "never":
        yield (
            "IMDSPROXY_REQUIRE_METADATA_HEADER=never disables IMDS's guard against request forgery: "
            "an attacker who can make a program fetch a URL gets this VM's tokens"
        )


def _unknown(path: str) -> str | None:
    """Return None for a path that may match, otherwise the known path that it resembles, or an empty text."""
    if path in _ENDPOINTS or any(_within(path, each) for each in (*_OPEN - {"/metadata/instance"}, *_INSTANCE)):
        return None
    import difflib  # noqa: PLC0415 - costs memory, and is needed only for a mistake

    parent, _, leaf = path.rpartition("/")
    siblings = {each.rpartition("/")[2]: each for each in _ENDPOINTS if each.rpartition("/")[0] == parent}
    near = [siblings[each] for each in difflib.get_close_matches(leaf, siblings, 1, _ALIKE)]
    if not near and _within(path, "/metadata/instance"):
        return None  # Azure adds categories
    return near[0] if near else ""


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
