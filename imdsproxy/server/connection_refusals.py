"""What a connection refuses itself, before the application has a request: bytes, their amount, and clients."""

from __future__ import annotations

from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.response_writer import head
from imdsproxy.records import refused

LONGEST_HEAD = 65536
"""The maximum length in bytes of a request without its body."""
MOST_FIELDS = 100

MALFORMED = Refusal(
    400,
    "malformed",
    "invalid_request",
    "This is not an unambiguous HTTP/1.1 request; send plain HTTP (http://), as RFC 9112 writes it.",
)
HEAD_TOO_LONG = Refusal(
    431,
    "head-too-long",
    "header_fields_too_large",
    f"Send at most {LONGEST_HEAD} bytes and {MOST_FIELDS} fields beside the body.",
)
TOO_SLOW = Refusal(
    408,
    "request-timeout",
    "request_timeout",
    "The request was not complete in time (IMDSPROXY_HEADER_TIMEOUT); send it without pauses.",
)
UPGRADE_WITH_BODY = Refusal(
    400,
    "upgrade-with-body",
    "invalid_request",
    "A request with Upgrade must not have a body here; send it without Upgrade.",
)
NOT_A_CLIENT = Refusal(
    403,
    "client",
    "forbidden",
    "This proxy answers only clients of the address ranges in IMDSPROXY_CLIENTS, and yours is not in them; "
    "ask the proxy of your own machine, or have its operator add your range.",
)
NOT_OF_THIS_MACHINE = Refusal(
    403,
    "client",
    "forbidden",
    "This listener is for the machine itself and its pods, and you came from another machine; "
    "ask the proxy of your own machine.",
)
TOO_MANY = Refusal(
    503,
    "connections",
    "service_unavailable",
    "This proxy has as many connections as its limits of open files (LimitNOFILE=, ulimit -n) and memory allow; "
    "ask again.",
    ((b"retry-after", b"1"),),
)
NO_MEMORY = Refusal(
    503,
    "memory",
    "service_unavailable",
    "Long requests and unread answers of clients use all the memory that this proxy has for them; ask again.",
    ((b"retry-after", b"1"),),
)
UNKNOWN_METHOD = Refusal(
    405, "method", "method_not_allowed", "This method is not supported here; use GET.", ((b"allow", b"GET"),)
)


def written(refusal: Refusal, *further: tuple[bytes, bytes]) -> bytes:
    """Return the last answer of a connection, with these further fields."""
    served = refused(refusal)
    fields = [*served.headers(), *further, (b"connection", b"close")]
    return b"%b\r\n%b" % (head(refusal.status, fields), served.response.body)
