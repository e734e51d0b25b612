"""Read a path of an access file in the way in which the targets of requests are read."""

from __future__ import annotations

from imdsproxy.access.document import Node
from imdsproxy.policy.endpoints import Segments
from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.target import read_target


def read_path(node: Node) -> Segments:
    """Return the segments of a path under `/metadata`. Raises AccessFileError."""
    text = node.text()
    target = read_target(text.encode("utf-8")) if text.startswith("/") and "?" not in text and "*" not in text else None
    if target is None or isinstance(target, Refusal) or target.segments[:1] != ("metadata",):
        raise node.error(
            f'{node.name} "{text[:80]}" is not a path under /metadata; write a path without query and pattern, '
            "which includes everything below it"
        )
    return target.segments
