"""Every value that a label of a counter can have, so that all counters are there from the start.

A counter that appears with its first event hides that event from `rate` and `increase`. Words that are not known here
are counted as `OTHER`, so the number of series is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping

from imdsproxy.ops.history import RECALLED
from imdsproxy.policy.endpoints import ENDPOINTS
from imdsproxy.protocol.failures import DEFAULT_RETRIED
from imdsproxy.protocol.messages import FailureKind
from imdsproxy.records import Outcome

NONE = "none"
"""The `endpoint` of a request for none of IMDS's, and the `reason` of an answer without one."""
OTHER = "other"
"""The `reason` of an answer whose reason is not known here."""

ALL_ENDPOINTS = tuple(sorted(ENDPOINTS))
UPSTREAM_ENDPOINTS = tuple(sorted(ENDPOINTS - {NONE}))
OUTCOMES = tuple(outcome.value for outcome in Outcome)

ACCESS = "access"
"""The reason of what the access rules refuse."""
_BY_RULE = "access-"
REASONS: Mapping[str, str] = {
    "derived": "2xx",
    "stale-if-error": "2xx",
    **dict.fromkeys(
        (
            *(ACCESS, "admin-only", "bad-host", "bad-target", "body-too-long", "browser", "budget", "client", "denied"),
            *("head-too-long", "host", "malformed", "metadata-header", "method", "other-host", "outside"),
            *("pipelined", "request-timeout", "upgrade-with-body", "x-forwarded-for"),
        ),
        "4xx",
    ),
    **dict.fromkeys(("connections", "ending", "memory", *(kind.value for kind in FailureKind)), "5xx"),
}
"""Each reason of the proxy's own answers, and the class of the status that it has most often."""
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")
RESPONSES = (*((status, NONE) for status in STATUS_CLASSES), *((status, reason) for reason, status in REASONS.items()))
"""Status class and reason of the responses that are counted from the start."""

ATTEMPT_STATUSES = (
    *("200", "400", "403", "404", "410", "429", "500", "503"),
    *(kind.value for kind in FailureKind),
    RECALLED,
)
"""The statuses of upstream attempts that are counted from the start: those that Microsoft documents, and the proxy's
own words."""
RETRY_REASONS = (
    *map(str, sorted(DEFAULT_RETRIED)),
    *(FailureKind.UNREACHABLE.value, FailureKind.SILENT.value, FailureKind.RESET.value),
    *(FailureKind.UNREADABLE.value, FailureKind.UNEXPECTED.value),
)


def status_class(status: int) -> str:
    """Return the class of a status, such as `2xx`. Statuses that HTTP does not define are `OTHER`."""
    return f"{status // 100}xx" if 100 <= status < 600 else OTHER


def reason_label(detail: str | None) -> str:
    """Return the `reason` label of an answer with this `detail`."""
    if detail is None:
        return NONE
    if detail.startswith(_BY_RULE):
        return ACCESS  # `imdsproxy_access_refused_total` has the rule
    return detail if detail in REASONS else OTHER
