"""Header fields by which a client traces its requests. They change no answer, and their values seldom repeat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

TRACE_CONTEXT = (b"traceparent", b"tracestate")
"""The fields of W3C's recommendation Trace Context."""
LONGEST_STATE = 512
"""Characters of a `tracestate`, all its fields together. A longer one is left out, because each span that waits for its
export keeps it. Trace Context section 3.3.1.5 asks for no more than this."""
TRACING_FIELDS = frozenset(
    {
        *(b"x-ms-client-request-id", b"x-ms-correlation-request-id", b"client-request-id", b"request-id"),
        *(b"correlation-context", *TRACE_CONTEXT, b"baggage"),
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
_CONTEXT_LINE = re.compile(rb"\r\n(?=t)(%b):([\x20-\x7e\t]*)(?=\r\n)" % b"|".join(TRACE_CONTEXT), re.IGNORECASE)
# Trace Context section 3.2: version, trace id, parent id, flags. A later version may add to it.
_SAMPLED = re.compile(r"(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf](?:$|-)")


def without_tracing(head: bytes) -> bytes:
    """Return a request head without its tracing fields.

    Only whole lines after the first one are removed, and none that is the last before the end of the bytes. So if the
    result is one complete head, the argument was one, with tracing fields in addition.
    """
    return _LINE.sub(b"", head)


def trace_context(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return `traceparent` and `tracestate` by name; empty if there is no trace context.

    A request with two `traceparent` has none, because it is unknown which is right. Several `tracestate` are one list
    (Trace Context section 3.3.1). One longer than `LONGEST_STATE` is left out.

    Args:
        fields: A request's fields, with names in lower case.
    """
    ours = [field for field in fields if field[0] in TRACE_CONTEXT]
    parents, states = ([value for name, value in ours if name == wanted] for wanted in TRACE_CONTEXT)
    if len(parents) != 1:
        return {}
    found = {"traceparent": parents[0].strip(b" \t").decode("latin-1")}
    state = b",".join(states)
    if states and len(state) <= LONGEST_STATE:
        found["tracestate"] = state.decode("latin-1")
    return found


def trace_context_of_head(head: bytes) -> dict[str, str]:
    """Return the trace context of a request head, as `trace_context` does of its fields."""
    lines = _CONTEXT_LINE.findall(head)
    return trace_context([(name.lower(), value) for name, value in lines]) if lines else {}


def is_sampled(context: Mapping[str, str]) -> bool:
    """Return whether a trace context says that its sender samples the trace (Trace Context section 3.2.2.5.1)."""
    return _SAMPLED.match(context.get("traceparent", "")) is not None
