"""Read what another imdsproxy says in `Cache-Status` (RFC 9211)."""

from __future__ import annotations

from imdsproxy.protocol.messages import Response

ENDING = "ending"
"""The `detail` of a proxy that is shutting down. A retry reaches its successor."""


def proxy_detail(response: Response) -> str | None:
    """Return the `detail` of the imdsproxy that the response came through.

    It is empty if that proxy gave none, and None if IMDS itself answered. Caches append their members, so the last
    member is the nearest proxy's (RFC 9211 section 2).
    """
    members = [value for field, value in response.headers if field == b"cache-status"]
    name, *parameters = b"".join(members[-1:]).rpartition(b",")[2].split(b";")
    if name.strip() != b"imdsproxy":
        return None
    details = (part.partition(b"=")[2] for part in parameters if part.strip().startswith(b"detail="))
    return next(details, b"").decode("latin-1")


def reports_loop(response: Response) -> bool:
    """Return whether an imdsproxy refused the request because it had passed that proxy before."""
    return response.status == 508 and proxy_detail(response) == "loop"
