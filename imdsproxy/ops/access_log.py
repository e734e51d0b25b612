"""The access log: one line for each answer."""

from __future__ import annotations

import logging

from imdsproxy.records import Client, RequestRecord

logger = logging.getLogger("imdsproxy.access")

_LONGEST_PATH = 200


def log_request(record: RequestRecord, seconds: float, client: Client | None, request: bytes) -> None:
    """Log an answer, with the path of the target as it was on the wire, and without its query."""
    fields: dict[str, object] = {"client": client[0] if client else "-"}
    if request:
        method, target = request.split(b" ", 2)[:2]
        path = target.partition(b"?")[0][:_LONGEST_PATH].decode("ascii", "backslashreplace")
        fields |= {"method": method.decode("utf-8", "backslashreplace"), "path": path[:_LONGEST_PATH]}
    fields |= {"status": record.response.status, "outcome": record.outcome.value}
    if request:
        fields |= {"endpoint": record.endpoint, "milliseconds": round(seconds * 1000, 3)}
    if record.detail:
        fields["detail"] = record.detail
    logger.info("request", extra={"fields": fields})
