"""Read the query of a request for the conditions of a grant: the identity and the audience of an access token.

The conditions hold the target that is sent to IMDS, in its canonical spelling. It is not documented how IMDS reads a
name in another case, a parameter that it does not document, a second name for the identity, or a `;` in a value. If
the proxy and IMDS read one of them differently, a client gets a token that its grant does not name. So a query is
either **plain**, or it is unclear and no grant with conditions covers it:

- every name is in lower case and holds nothing but letters, digits, `-` and `_`;
- every value consists of characters that no reader splits or decodes again;
- a request under `/metadata/identity` has no parameters but the documented ones, and at most one that names the
  identity;
- the method is GET, because a body could have parameters too.

**The identity.** `client_id`, `object_id` and `msi_res_id` (or `mi_res_id`) name it. Without any of them IMDS takes
the system-assigned identity, or the VM's only user-assigned identity if it has no other (Microsoft's page on getting
tokens). The request is then for `system-assigned`, whichever of the two IMDS takes. A grant of a `client_id` does not
cover the same identity by its `object_id`, because only IMDS knows that they are the same.

**The audience** is `resource`. Trailing slashes and case are ignored: Microsoft Entra ID issues tokens for the same
application with and without them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imdsproxy.policy.endpoints import Segments
from imdsproxy.protocol.messages import Target

TOKEN: Segments = ("metadata", "identity", "oauth2", "token")
"""The path of access tokens."""
SYSTEM_ASSIGNED = "system-assigned"
IDENTITY_PARAMETERS = {
    "client_id": "client_id",
    "object_id": "object_id",
    "msi_res_id": "resource_id",
    "mi_res_id": "resource_id",
}
"""The parameters that name an identity, with the kind of the name."""
AUDIENCE_PARAMETER = "resource"

_IDENTITY: Segments = TOKEN[:2]
_DOCUMENTED = frozenset({"api-version", AUDIENCE_PARAMETER, "bypass_cache", *IDENTITY_PARAMETERS})
_NAME = re.compile(rb"[a-z0-9_-]+")
_VALUE = re.compile(r"[A-Za-z0-9._~:/@()-]*")


class Query(NamedTuple):
    """A query, as conditions are compared with it."""

    unclear: str | None = None
    """Why it can be read in more than one way, in words for people; None if it is plain."""
    identity: tuple[str, str] = (SYSTEM_ASSIGNED, "")
    audience: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()

    def value(self, name: str) -> str | None:
        """Return the value of a parameter in lower case, or None."""
        return next((value.lower() for found, value in self.parameters if found == name), None)


def read_query(method: str, target: Target) -> Query:
    """Return the query of a request."""
    parameters = target.parameters
    named = [(IDENTITY_PARAMETERS[name], value) for name, value in parameters if name in IDENTITY_PARAMETERS]
    unclear = _unclear(method, target, len(named))
    if unclear is not None:
        return Query(unclear)
    kind, value = named[0] if named else (SYSTEM_ASSIGNED, "")
    resource = next((value for name, value in parameters if name == AUDIENCE_PARAMETER), None)
    audience = None if resource is None else comparable(resource)
    return Query(None, (kind, comparable(value)), audience, parameters)


def comparable(value: str) -> str:
    """Return an audience or an identity's name in the one spelling that is compared: Azure's ids have no case."""
    return value.lower().rstrip("/")


def _unclear(method: str, target: Target, identities: int) -> str | None:
    if method != "GET":
        return f"the body of a {method} can have parameters too"
    for pair in target.raw.partition(b"?")[2].split(b"&"):
        written = pair.partition(b"=")[0]
        if pair and not _NAME.fullmatch(written):
            return f'the parameter name "{written.decode("ascii")[:40]}" is not written in plain lower case'
    for name, value in target.parameters:
        if not _VALUE.fullmatch(value):
            return f'the value of "{name}" has a character that can be read in two ways'
        if not value and name in {AUDIENCE_PARAMETER, *IDENTITY_PARAMETERS}:
            return f'"{name}" is empty, which can mean the same as leaving it out'
        if target.segments[: len(_IDENTITY)] == _IDENTITY and name not in _DOCUMENTED:
            return f'"{name[:40]}" is not a documented parameter of a request for a token'
    return "more than one parameter names an identity" if identities > 1 else None
