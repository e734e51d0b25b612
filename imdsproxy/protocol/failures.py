"""Which answers say that IMDS failed."""

from __future__ import annotations


def is_failure(status: int, *, identity: bool = False) -> bool:
    """Whether a status says that IMDS failed, so that what is kept may be served instead.

    410, 429 and every 5xx are trouble at IMDS (Microsoft's IMDS page, "Errors"). A 404 from the identity endpoint is
    too: it answers so while it is being updated, which is why Microsoft's clients retry it there.
    """
    return status in (410, 429) or status >= 500 or (identity and status == 404)
