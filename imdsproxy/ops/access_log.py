"""The access log: one line for each answer."""

from __future__ import annotations

import logging

from imdsproxy.records import Client, RequestRecord, description_of

logger = logging.getLogger("imdsproxy.access")

_LONGEST_PATH = 200


def log_request(record: RequestRecord, seconds: float, client: Client | None, request: bytes) -> None:
    """Log an answer, with the path of the target as it was on the wire, and without its query."""
    name = description_of(client)
    status, outcome = record.response.status, record.outcome.value
    fields: dict[str, object] = {"client": name, "status": status, "outcome": outcome}
    if request:
        method, target = request.split(b" ", 2)[:2]
        fields = {
            "client": name,
            "method": method.decode("utf-8", "backslashreplace"),
            "path": target.partition(b"?")[0][:_LONGEST_PATH].decode("ascii", "backslashreplace")[:_LONGEST_PATH],
            "status": status,
            "outcome": outcome,
            "endpoint": record.endpoint,
            "milliseconds": round(seconds * 1000, 3),
        }
    if record.detail:
        fields["detail"] = record.detail
    logger.info("request", extra={"fields": fields})
