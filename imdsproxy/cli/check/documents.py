"""Read what others send as JSON; none of it can be relied on."""

from __future__ import annotations

import json

from imdsproxy.errors import without_tokens


def member(text: str, name: str) -> object:
    """Return a member of a JSON object, or None if the text is not one, or has no such member."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found.get(name) if isinstance(found, dict) else None


def words(text: str, name: str) -> str:
    """Return a member as text without what looks like an access token, or the empty string."""
    found = member(text, name)
    return without_tokens(found) if isinstance(found, str) else ""
