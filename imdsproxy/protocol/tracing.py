"""Header fields by which a client traces its requests. They change no answer, and their values seldom repeat."""

from __future__ import annotations

import re

TRACING_FIELDS = frozenset(
    {
        *(b"x-ms-client-request-id", b"x-ms-correlation-request-id", b"client-request-id", b"request-id"),
        *(b"correlation-context", b"traceparent", b"tracestate", b"baggage"),
    }
)
"""Azure's client libraries, and the W3C's recommendations Trace Context and Baggage."""

# The first letters stand in front, because the alternatives would be tried at every line otherwise. A line that begins
# with a space or a tab continues the field before it (RFC 9112 section 5.2), so that field is no whole line.
_LINE = re.compile(
    rb"\r\n(?=[%b])(?:%b):[\x20-\x7e]*(?=\r\n[^ \t])"
    % (bytes({name[0] for name in TRACING_FIELDS}), b"|".join(sorted(TRACING_FIELDS, reverse=True))),
    re.IGNORECASE,
)


def without_tracing(head: bytes) -> bytes:
    """Return a request head without its tracing fields.

    Only whole lines after the first one are removed, and none that is the last before the end of the bytes. So if the
    result is one complete head, the argument was one, with tracing fields in addition.
    """
    return _LINE.sub(b"", head)
