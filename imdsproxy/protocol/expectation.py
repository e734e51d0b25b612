"""What each endpoint of IMDS can answer, so that another server's page is not taken for its answer.

A 200 that fits no expectation comes from something else on the way, such as a portal or another service, or from an
incomplete transfer, or from an IMDS in trouble. The expectations are wide: every documented answer of every api-version
fits, and an endpoint that is not listed here has none. Sources: Microsoft's IMDS page, its scheduled-events page and
its managed-identity token page.
"""

from __future__ import annotations

import json
import re

from imdsproxy.protocol.messages import Request, Response

TOKEN_PATH = ("metadata", "identity", "oauth2", "token")
INFO_PATH = ("metadata", "identity", "info")
_INSTANCE = ("metadata", "instance")

# A document has at least one of these names at its top level; they are in lower case.
_DOCUMENTS = {
    ("metadata", "versions"): frozenset({"apiversions"}),
    _INSTANCE: frozenset({"compute", "network"}),
    ("metadata", "attested", "document"): frozenset({"signature"}),
    ("metadata", "scheduledevents"): frozenset({"documentincarnation", "events"}),
    ("metadata", "loadbalancer"): frozenset({"loadbalancer"}),
    INFO_PATH: frozenset({"tenantid"}),
    TOKEN_PATH: frozenset({"access_token"}),
}
_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE)
# IMDS's documents have a few KiB. No client is served during parsing: 12 ms at worst for 128 KiB, 90 ms for 1 MiB.
_MOST_PARSED = 128 * 1024
_MALFORMED = "JSON that is cut off or malformed"
# Accepts what a lenient reader accepts: control characters, and numbers of any length. Made once, as it takes longer to
# make than to use.
_LENIENT = json.JSONDecoder(strict=False, parse_int=float)


def objection(request: Request, response: Response) -> str | None:
    """Return a short description of what came instead of an answer of IMDS, or None if IMDS can have sent it.

    Only a 200 to a GET is judged, because IMDS words its errors in more ways than are known. A body in a content
    coding is not judged, because it cannot be read. The description quotes nothing of the body.
    """
    target = request.target
    if request.method != "GET" or response.status != 200 or is_coded(response):
        return None
    below_instance = target.segments[: len(_INSTANCE)] == _INSTANCE and target.segments != _INSTANCE
    names = _DOCUMENTS.get(target.segments)
    if names is None and not below_instance:
        return None
    if ("format", "text") in ((name, value.lower()) for name, value in target.parameters):
        return _objection_to_text(response)
    if below_instance and _media_type(response) == b"text/plain":
        return _objection_to_text(response)
    return _objection_to_json(request, response.body, names)


def is_coded(response: Response) -> bool:
    """Return whether the body is in a content coding (RFC 9110 section 8.4), which the proxy never requests."""
    return (response.header(b"content-encoding") or b"identity").strip().lower() != b"identity"


def is_expected_status(request: Request, status: int) -> bool:
    """Return whether a known endpoint can have answered with this status. Of all 2xx and 3xx, IMDS sends only 200."""
    known = request.target.segments in _DOCUMENTS or request.target.segments[: len(_INSTANCE)] == _INSTANCE
    return status == 200 or status >= 400 or request.method != "GET" or not known


def _objection_to_text(response: Response) -> str | None:
    """Object to an HTML page only, because a value can be any text, or empty."""
    if _media_type(response) == b"text/html" or _PAGE.match(response.body):
        return "an HTML page"
    return None


def _objection_to_json(request: Request, body: bytes, names: frozenset[str] | None) -> str | None:
    whole = body.strip()
    if not whole or whole.startswith(b"<"):
        return "an HTML page" if whole else "an empty body"
    if len(whole) > _MOST_PARSED:
        return None if whole[:1] + whole[-1:] in {b"{}", b"[]"} else _MALFORMED
    try:
        # Invalid UTF-8 is accepted, too.
        document = _LENIENT.decode(whole.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return _MALFORMED
    return None if names is None else _objection_to_document(request, document, names)


def _objection_to_document(request: Request, document: object, names: frozenset[str]) -> str | None:
    if not isinstance(document, dict):
        return "JSON that is not an object"
    present = {name.lower(): value for name, value in document.items()}
    if names.isdisjoint(present):
        return f"JSON without {' or '.join(sorted(names))}"
    return _objection_to_token(request, present) if request.target.segments == TOKEN_PATH else None


def _objection_to_token(request: Request, token: dict[str, object]) -> str | None:
    """Object to a document without a token, and to a token of another identity than the request's `client_id`."""
    if not isinstance(token["access_token"], str) or not token["access_token"]:
        return "JSON without an access token"
    requested = dict(request.target.parameters).get("client_id", "").lower()
    received = token.get("client_id")
    if requested and isinstance(received, str) and received and received.lower() != requested:
        return "a token of another identity"
    return None


def _media_type(response: Response) -> bytes:
    return (response.header(b"content-type") or b"").partition(b";")[0].strip().lower()
