"""A managed-identity token's life, and its body with `expires_in` aged.

`expires_in` is what was left of the token's life when IMDS answered (Microsoft's managed-identity token
page, and captured responses), so it is turned into monotonic time once, at receipt, and no wall clock is
asked again. It is counted from the moment the request was sent: IMDS answered later than that, hence what a
client is told is never above the truth.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MARGIN = 300.0
"""Seconds of life under which a token is neither kept nor served from the cache."""

_LONGEST_LIFE = 7 * 24 * 3600
# The quotes belong to the pattern: inside another JSON string they would be escaped and not match.
_EXPIRES_IN = re.compile(rb'"expires_in"\s*:\s*("?)(\d{1,9})\1\s*(?=[,}])')


@dataclass(frozen=True, slots=True)
class TokenBody:
    """A token response that can be aged: everything but the digits of `expires_in` stays as IMDS wrote it."""

    before: bytes
    after: bytes
    expires_in: int
    """Seconds of life left when IMDS answered."""

    def aged(self, seconds: float) -> bytes:
        """Give the body `seconds` after the request was sent; what is left is rounded down, never below 0."""
        left = max(0, int(self.expires_in - seconds))
        return b"%b%d%b" % (self.before, left, self.after)


def read_token(body: bytes) -> TokenBody | None:
    """Read a token response; None where its life cannot be told without doubt (such a token is not kept).

    Doubt is: no JSON object, no access token, `expires_in` missing, twice, negative, not a whole number of
    digits (bare or in quotes), or longer than a week, seven times what Azure issues.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("access_token"), str):
        return None
    found = list(_EXPIRES_IN.finditer(body))
    if len(found) != 1:
        return None
    life = int(found[0][2])
    if life > _LONGEST_LIFE:
        return None
    token = TokenBody(body[: found[0].start(2)], body[found[0].end(2) :], life)
    # The proof that these digits are the token's own, not those of a nested or an escaped name: aged to its end, the
    # document says 0 there and is otherwise the same.
    ended = {**document, "expires_in": "0" if found[0][1] else 0}
    return token if json.loads(token.aged(life)) == ended else None
