"""Read what another imdsproxy says in `Cache-Status` (RFC 9211)."""

from __future__ import annotations

from imdsproxy.protocol.messages import Response

ENDING = "ending"
"""The detail of the answer that a proxy gives while it is being stopped; the next one will do better."""


def word_of_proxy(response: Response) -> str | None:
    """Give the `detail` that an imdsproxy gave with an answer, empty where it gave none; None if IMDS itself answered.

    Caches add their members at the end, so the last is the nearest one's (RFC 9211 section 2).
    """
    members = [value for field, value in response.headers if field == b"cache-status"]
    name, *parameters = b"".join(members[-1:]).rpartition(b",")[2].split(b";")
    if name.strip() != b"imdsproxy":
        return None
    details = (part.partition(b"=")[2] for part in parameters if part.strip().startswith(b"detail="))
    return next(details, b"").decode("latin-1")


def tells_of_loop(response: Response) -> bool:
    """Whether an answer is an imdsproxy's word that the request had passed it before: it never reached IMDS."""
    return response.status == 508 and word_of_proxy(response) == "loop"
