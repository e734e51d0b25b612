"""The one meaning of "IMDS failed".

Retries, stale answers, IMDS's health, readiness, the negative cache and the metrics all use the verdict of this
module. There is one verdict for each upstream attempt. A failure is never stored.

| what came | failed | retried |
|---|---|---|
| no answer (`Failure`) | yes | as `upstream.retry` says for its kind |
| a status of `RETRY_STATUSES` | yes | yes |
| 410, 429, any 5xx | yes | only if `RETRY_STATUSES` has it |
| 404 for a token or `/metadata/identity/info` | yes | only if `RETRY_STATUSES` has it |
| a 2xx or 3xx that a known endpoint never answers | yes | only if `RETRY_STATUSES` has it |
| a 200 that the endpoint cannot have sent | yes, as a `Failure` | yes |
| anything else | no | no |
"""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.expectation import INFO_PATH, TOKEN_PATH, is_expected_status, objection
from imdsproxy.protocol.messages import Failure, FailureKind, Request, Response

DEFAULT_RETRIED = frozenset({410, 429, 500, 502, 503, 504})
"""The default of `RETRY_STATUSES`."""

# Trouble at IMDS (Microsoft's IMDS page, "Errors").
_FAILED = frozenset({410, 429, *range(500, 600)})
# The identity endpoint answers 404 while it is being updated, which is why Microsoft's clients retry it there. Below
# other identity paths a 404 says that this IMDS does not have them.
_NOT_FOUND = 404
_FAILS_WITH_NOT_FOUND = frozenset({TOKEN_PATH, INFO_PATH})


@dataclass(frozen=True, slots=True)
class Verdict:
    """One upstream attempt's result, judged."""

    result: Response | Failure
    """The response or failure. A 200 that the endpoint cannot have sent is a `Failure` here."""
    failed: bool
    retried: bool = False
    """Whether results of this kind are retried, if there is time."""

    @property
    def word(self) -> str:
        """The status, or the failure's kind, as a metric label."""
        return str(self.result.status) if isinstance(self.result, Response) else self.result.kind.value

    @property
    def description(self) -> str:
        """The result in words for people."""
        return f"status {self.word}" if isinstance(self.result, Response) else self.result.description


_RETRIED_KINDS = frozenset(
    {
        *(FailureKind.UNREACHABLE, FailureKind.SILENT, FailureKind.RESET, FailureKind.UNREADABLE),
        FailureKind.UNEXPECTED,
    }
)


@dataclass(frozen=True, slots=True)
class FailureRules:
    """The table above with the user's `RETRY_STATUSES` in it."""

    retried: frozenset[int] = DEFAULT_RETRIED

    def judge(self, request: Request, result: Response | Failure) -> Verdict:
        """Return the verdict on the result of one upstream attempt."""
        if isinstance(result, Response):
            found = objection(request, result)
            if found is None:
                return Verdict(result, self._fails(request, result.status), result.status in self.retried)
            result = _unexpected(request, found)
        return Verdict(result, failed=True, retried=result.kind in _RETRIED_KINDS)

    def _fails(self, request: Request, status: int) -> bool:
        if status in self.retried or status in _FAILED:
            return True
        if status == _NOT_FOUND:
            return request.target.segments in _FAILS_WITH_NOT_FOUND
        return not is_expected_status(request, status)


def _unexpected(request: Request, found: str) -> Failure:
    return Failure(
        FailureKind.UNEXPECTED,
        f"The upstream answered {request.target.path[:100]} with status 200 and {found}, which the metadata service "
        "never sends. Does IMDSPROXY_UPSTREAM name the metadata service, or is there a portal or another proxy on the "
        "way? Ask again.",
    )
