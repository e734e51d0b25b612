"""The policy: what may be requested, what may be cached, and for how long.

The table of `endpoints` has the defaults. A user's `TTL` or `STALE_IF_ERROR` overrides every default that is a
number. A default of *never* is overridden only by a setting that names its path or one below it, so that
`TTL=/metadata=60` does not cache scheduled events by accident. A row marked `fixed` is never overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from imdsproxy.policy.decisions import Cache, Decision, Forward, Lifetimes, Refuse
from imdsproxy.policy.endpoints import Row, Segments, row_of, split, within
from imdsproxy.protocol.memory import Remembered
from imdsproxy.protocol.messages import Refusal, Request, Target
from imdsproxy.protocol.target import size_of_reading

MetadataRule = Literal["credentials", "always", "never"]

_LONGEST_REMEMBERED = 1024
# The bytes of a remembered decision.
_SIZE_OF_ROUTE = 350
_SIZE_OF_REFUSAL = 1200

# IMDS's own words, byte for byte (captured responses of both endpoints).
_NO_METADATA_IDENTITY = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
_NO_METADATA_OTHER = b'{ "error": "Bad request: . Required metadata header not specified" }'


class Policy:
    """The rules in force. Paths are lower case without a trailing slash; times are seconds."""

    def __init__(  # noqa: PLR0913  # one argument a setting, all by name
        self,
        *,
        ttl: Mapping[str, float] | None = None,
        stale_if_error: Mapping[str, float] | None = None,
        token_fresh: float = 3600.0,
        negative_ttl: float = 5.0,
        require_metadata: MetadataRule = "credentials",
        allow: tuple[str, ...] = ("/metadata",),
        deny: tuple[str, ...] = (),
        memory: int = 0,
    ) -> None:
        """Make the rules; `memory` is the bound of remembered decisions, in bytes."""
        self._ttl = ttl or {}
        self._stale_if_error = stale_if_error or {}
        self._token_fresh = token_fresh
        self._negative_ttl = negative_ttl
        self._require_metadata = require_metadata
        self._allow = tuple(map(split, allow))
        self._deny = tuple(map(split, deny))
        # Clients repeat their targets, and a decision that depends on the target alone never changes.
        self._remembered = Remembered(self._route, _size, memory)

    def decide(self, request: Request) -> Decision:
        """Return what to do with a request. Every request has exactly one decision."""
        target = request.target
        route = self._remembered(target) if len(target.raw) <= _LONGEST_REMEMBERED else self._route(target)
        if isinstance(route, Refuse):
            return route
        if request.wrong_metadata:
            return Refuse(_no_metadata(target))
        if not request.metadata and self._needs_metadata(request):
            if route.endpoint == "identity":  # not documented, so IMDS decides about the missing header
                return self._alone(request, route, add_metadata=False)
            return Refuse(_no_metadata(target))
        if request.method == "POST" or isinstance(route, Forward):
            return self._alone(request, route, add_metadata=True)
        return route

    def _needs_metadata(self, request: Request) -> bool:
        """Return whether the client itself has to send `Metadata: true`.

        The header is IMDS's guard against forged requests, so the proxy adds it only where forging gains nothing. It
        adds none to requests for credentials, requests that change something, and requests redirected from IMDS.
        """
        if self._require_metadata == "credentials":
            return request.to_imds or request.method == "POST" or request.target.segments[1:2] == ("identity",)
        return self._require_metadata == "always"

    @staticmethod
    def _alone(request: Request, route: Forward | Cache, *, add_metadata: bool) -> Forward:
        posted = request.method == "POST"
        return Forward(
            route.endpoint,
            route.budget,
            add_metadata,
            once=posted,
            drops=request.target.path if posted and route.endpoint == "scheduledevents" else None,
            slow=route.slow,
        )

    def _route(self, target: Target) -> Decision:
        """Return the decision that depends on the target alone."""
        if target.segments[:1] != ("metadata",):
            return Refuse(_not_found())
        if not within(target.segments, self._allow) or within(target.segments, self._deny):
            return Refuse(_denied(target))
        row = row_of(target.segments)
        nonce = row.endpoint == "attested" and target.has("nonce")
        lifetimes = Lifetimes() if row.fixed or nonce else self._lifetimes(row, target.segments)
        if lifetimes.fresh <= 0:
            return Forward(row.endpoint, row.budget, add_metadata=True, slow=row.slow)
        return Cache(row.endpoint, row.budget, lifetimes, slow=row.slow, handed_over=row.handed_over)

    def _lifetimes(self, row: Row, segments: Segments) -> Lifetimes:
        fresh = _override(self._ttl, segments, row.fresh > 0 and not row.slow, row.path)
        stale = _override(self._stale_if_error, segments, row.token or row.stale_if_error > 0, row.path)
        if row.token:  # bounded by the token's own life (`cache.access_token`); a setting can only shorten
            return Lifetimes(
                fresh=self._token_fresh if fresh is None else min(fresh, self._token_fresh),
                revalidate=float("inf") if fresh is None else fresh,
                stale_if_error=float("inf") if stale is None else stale,
                negative=self._negative_ttl,
                token=True,
            )
        fresh = row.fresh if fresh is None else fresh
        return Lifetimes(
            fresh=fresh,
            revalidate=fresh if row.refreshes else 0.0,
            stale_if_error=row.stale_if_error if stale is None else stale,
            negative=self._negative_ttl,
        )


def _size(target: Target, route: Decision) -> int:
    """Return the bytes of a remembered decision, with the target that it keeps in memory."""
    size = _SIZE_OF_ROUTE + size_of_reading(target.raw, target)
    return size + _SIZE_OF_REFUSAL if isinstance(route, Refuse) else size


def _override(settings: Mapping[str, float], segments: Segments, open_to_all: bool, row: Segments) -> float | None:
    """Return the user's value for the longest path prefix, or None.

    A row whose default is *never* is overridden only by a prefix that names it, unless `open_to_all`. The row of
    `/metadata` is for paths without a row of their own, so a prefix of `/metadata` names none of them.
    """
    shortest = 1 if open_to_all else max(2, len(row))
    for length in range(len(segments) if settings else 0, shortest - 1, -1):
        value = settings.get("/" + "/".join(segments[:length]))
        if value is not None:
            return value
    return None


def _no_metadata(target: Target) -> Refusal:
    body = _NO_METADATA_IDENTITY if target.segments[1:2] == ("identity",) else _NO_METADATA_OTHER
    return Refusal(400, "metadata-header", "invalid_request", "Required metadata header not specified", body=body)


def _not_found() -> Refusal:
    return Refusal(
        404,
        "outside",
        "not_found",
        "This is a proxy for the Azure metadata service: ask for a path under /metadata/, e.g. "
        "/metadata/instance?api-version=2021-02-01; the proxy's own pages are under /-/.",
    )


def _denied(target: Target) -> Refusal:
    return Refusal(
        403,
        "denied",
        "forbidden",
        f"{target.path[:100]} is not allowed through this proxy; see IMDSPROXY_ALLOW and IMDSPROXY_DENY.",
    )
