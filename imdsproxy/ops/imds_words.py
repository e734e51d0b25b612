"""The words in which IMDS refuses a request, for people: short, without the identity asked for, and without a token."""

from __future__ import annotations

import json
import re

from imdsproxy.errors import without_tokens
from imdsproxy.ops.token_names import identity_of
from imdsproxy.protocol.messages import Response
from imdsproxy.records import UpstreamAttempt

LONGEST_WORDS = 300
"""Characters."""

_LONGEST_READ = 16_384


def words_of(attempt: UpstreamAttempt) -> str:
    """Return why an attempt was not answered as hoped: IMDS's own words if it has sent some."""
    told = _told(attempt.response)
    words = attempt.failure or f"IMDS answered with status {attempt.status}"
    if told:
        words = f"{words}: {told}"
    identity = "" if attempt.target is None else identity_of(attempt.target)
    if identity:
        words = re.sub(re.escape(identity), "[identity]", words, flags=re.IGNORECASE)
    return without_tokens(words)[:LONGEST_WORDS]


def _told(response: Response | None) -> str:
    """Return the error and its description in the form of IMDS's identity endpoint, or `""`.

    Nothing else of a body is shown, because it could be a token. Even these could quote one.
    """
    if response is None or response.status == 200:
        return ""
    try:
        document = json.loads(response.body[:_LONGEST_READ])
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    parts = (document.get(name) for name in ("error", "error_description"))
    return ": ".join(part for part in parts if isinstance(part, str) and part)
