"""`POST /-/purge`: who may drop cached entries, and which. It is the only page that changes something."""

from __future__ import annotations

import json

from imdsproxy.protocol.messages import Refusal, Request, Response
from imdsproxy.protocol.target import read_target

PATH = "/-/purge"
_LONGEST_PATH = 1024

_ELSEWHERE = Refusal(
    403,
    "purge-elsewhere",
    "forbidden",
    "Entries are dropped only over IMDSPROXY_ADMIN_PORT or IMDSPROXY_UDS. SIGHUP drops all of them as well.",
)
_NO_METADATA = Refusal(
    400, "metadata-header", "invalid_request", "Send Metadata: true, once, as for a request that changes something."
)
_BAD_PATH = Refusal(
    400,
    "purge-path",
    "invalid_request",
    "Send the path to drop in the parameter path, such as ?path=/metadata/instance, or nothing to drop everything. "
    "A path begins with /metadata and has no query.",
)


def path_to_drop(request: Request, *, privileged: bool) -> str | Refusal | None:
    """Return the path whose entries are to be dropped, None for all entries, or why the request is refused.

    Args:
        request: The request, which is a POST.
        privileged: Whether it came by the admin listener or the Unix socket.
    """
    if not privileged:
        return _ELSEWHERE
    if not request.metadata:
        return _NO_METADATA
    parameters = dict(request.target.parameters)
    if not parameters:
        return None
    written = parameters.get("path", "")
    if len(parameters) > 1 or len(written) > _LONGEST_PATH or not written.isascii() or "?" in written:
        return _BAD_PATH
    target = read_target(written.encode("ascii"))
    if isinstance(target, Refusal) or target.authority is not None or target.segments[:1] != ("metadata",):
        return _BAD_PATH
    return target.path


def dropped(path: str | None, count: int) -> Response:
    """Return the answer after `count` entries of `path` were dropped."""
    body = json.dumps({"dropped": count, "path": path}, separators=(",", ":")).encode("ascii")
    return Response(200, ((b"content-type", b"application/json"), (b"cache-control", b"no-store")), body)
