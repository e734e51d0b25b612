"""Name an access token for people, without the identity that it belongs to."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from imdsproxy.access.query import IDENTITY_PARAMETERS
from imdsproxy.protocol.messages import Target

DEFAULT_IDENTITY = "default"
"""The identity of a request that names none: the system-assigned one, or the only one there is."""
_LONGEST_AUDIENCE = 200
_DIGITS = 8


class TokenName(NamedTuple):
    """A token by its audience and a short hash of its identity."""

    audience: str
    """The `resource` of the request."""
    identity: str
    """Eight hexadecimal digits of SHA-256 over the identity in lower case, or `default`."""

    @property
    def key(self) -> str:
        """The name as one text."""
        return f"{self.identity} {self.audience}"


def identity_of(target: Target) -> str:
    """Return the identity that a target names, or `""`. It is not to be shown."""
    return next((value for name, value in reversed(target.parameters) if name in IDENTITY_PARAMETERS), "")


def token_name(target: Target) -> TokenName:
    """Return the name of the token that a target requests."""
    audience = next((value for name, value in reversed(target.parameters) if name == "resource"), "")
    identity = identity_of(target)
    digest = hashlib.sha256(identity.lower().encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return TokenName(audience[:_LONGEST_AUDIENCE], digest if identity else DEFAULT_IDENTITY)
