"""The life of a managed-identity token, and the token's body with the remaining seconds of a later moment.

`expires_in` is the token's remaining life when IMDS answered (Microsoft's managed-identity token page, and captured
responses). It is converted to monotonic time once, at receipt, so that no change of the wall clock affects it. It
counts from when the request was sent. IMDS answered after that, so the figure that a client gets is never too high.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

MARGIN = 300.0
"""Seconds of remaining life below which a token is neither stored nor served from the cache."""

_LONGEST_LIFE = 7 * 24 * 3600
# The quotes belong to the pattern: inside another JSON string they would be escaped and not match.
_FIGURE = re.compile(rb'"(expires_in|refresh_in|ext_expires_in)"\s*:\s*("?)(\d{1,9})\2\s*(?=[,}])')
_LIFE = b"expires_in"


@dataclass(frozen=True, slots=True)
class TokenBody:
    """A token response that can be aged. All bytes but the digits of its remaining seconds stay as IMDS wrote them."""

    pieces: tuple[bytes, ...] = field(repr=False)
    """The bytes before, between and after the figures. The token is among them."""
    figures: tuple[int, ...]
    """The seconds left when IMDS answered: `expires_in`, and `refresh_in` and `ext_expires_in` if present."""
    expires_in: int
    """Seconds of life left when IMDS answered."""

    def aged(self, seconds: float) -> bytes:
        """Return the body `seconds` after the request was sent. Remaining seconds are rounded down, never below 0."""
        left = (b"%d" % int(max(0.0, figure - seconds)) for figure in self.figures)
        return b"".join(part for pair in zip(self.pieces, left, strict=False) for part in pair) + self.pieces[-1]


def read_token(body: bytes) -> TokenBody | None:
    """Read a token response. Return None if the token's life is uncertain; such a token is not stored.

    The life is uncertain if the body is not a JSON object or has no access token. It is also uncertain if `expires_in`
    is missing, repeated, negative, not a whole number (bare or in quotes), or longer than a week, which is seven times
    what Azure issues. The other two figures are aged if they have the same form, and otherwise stay as IMDS wrote them.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("access_token"), str):
        return None
    found = list(_FIGURE.finditer(body))
    lives = [match for match in found if match[1] == _LIFE]
    if len(lives) != 1 or int(lives[0][3]) > _LONGEST_LIFE:
        return None
    names = [match[1] for match in found]
    plain = [match for match in found if names.count(match[1]) == 1]
    return _cut(body, document, plain) or _cut(body, document, lives)


def _cut(body: bytes, document: dict[str, object], figures: list[re.Match[bytes]]) -> TokenBody | None:
    """Cut the body at these figures. Return None unless all of them belong to the token itself."""
    ends = [0, *(match.end(3) for match in figures)]
    starts = [*(match.start(3) for match in figures), len(body)]
    pieces = tuple(body[end:start] for end, start in zip(ends, starts, strict=True))
    life = next(int(match[3]) for match in figures if match[1] == _LIFE)
    token = TokenBody(pieces, tuple(int(match[3]) for match in figures), life)
    # The proof that these digits belong to the token, and not to a nested or an escaped name: aged to its end, the
    # document has 0 there and is otherwise the same.
    ended = {**document, **{match[1].decode("ascii"): "0" if match[2] else 0 for match in figures}}
    return token if json.loads(token.aged(float("inf"))) == ended else None
