"""What `--strict` refuses beside what the emulator refuses in any case, because IMDS would or need not accept it.

The emulator is lenient by default, so that it answers requests that try to get past a proxy. A program should rely on
nothing but this:

- a `resource` that is neither a URI nor a GUID, or is a scope (`/.default`): 400 `invalid_resource`, as Microsoft's
  managed-identity token page says;
- a `nonce` that is not 1 to 32 letters and digits: Microsoft's API description has these 32, the IMDS pages have 10
  digits; the words are not verified;
- dot segments, backslashes and percent escapes in a path, which are documented nowhere: not verified.

Letters of either case and doubled slashes are accepted, because Microsoft's own libraries send them (MSAL for Node and
Java).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from imdsproxy.emulator.messages import Answer, failure, json_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imdsproxy.emulator.messages import Request

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NONCE = re.compile(r"[0-9A-Za-z]{1,32}")
_SCOPE = "/.default"


def refused_path(path: str, *, identity: bool) -> Answer | None:
    """Return the refusal of a raw path that is written in an undocumented way, None for a plain one."""
    plain = "\\" not in path and "%" not in path and not {".", ".."} & set(path.split("/"))
    return None if plain else failure(404, identity)


def refused_query(request: Request, parameters: Mapping[str, str], tenant: str) -> Answer | None:
    """Return the refusal of a request because of its parameters, None if it has none.

    Args:
        request: A request that the emulator would answer.
        parameters: Its query.
        tenant: The tenant of the machine, which the refusal of a resource names.
    """
    path = "/".join(request.segments[1:]).lower()
    resource, nonce = parameters.get("resource", ""), parameters.get("nonce")
    if path == "identity/oauth2/token" and resource and not is_resource(resource):
        reason = f"AADSTS50001: The application named {resource} was not found in the tenant named {tenant}."
        return json_answer({"error": "invalid_resource", "error_description": reason}, 400)
    if path == "attested/document" and nonce is not None and not _NONCE.fullmatch(nonce):
        return failure(400, message="Bad request. nonce must be 1 to 32 letters and digits")
    return None


def is_resource(text: str) -> bool:
    """Return whether a text can be the audience of a token: a URI or a GUID, and not a scope."""
    if _GUID.fullmatch(text):
        return True
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc) and not text.lower().endswith(_SCOPE)
