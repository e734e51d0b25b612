"""Report why the proxy does not start, or ends by an error of its own, in the form of the log."""

from __future__ import annotations

import contextlib
import logging
import sys

from imdsproxy.errors import ImdsproxyError
from imdsproxy.ops import logs

logger = logging.getLogger("imdsproxy.start")


def report(error: ImdsproxyError, log_format: str) -> None:
    """Write why the start failed to standard error.

    As text it is lines for a person at a terminal, each after the program's name. As JSON it is one object, because
    whatever reads that log expects nothing else.
    """
    if log_format == "json":
        logs.configure("info", "json")
        logger.error("start failed", extra={"fields": {"because": str(error)}})
        logs.flush()
        return
    with contextlib.suppress(OSError):  # a missing reader does not change the exit status
        sys.stderr.write(f"{error.for_terminal()}\n")


def report_bug(error: Exception) -> None:
    """Log an error that no part of the proxy expects, with its traceback."""
    logger.critical("imdsproxy was ended by an error of its own; please report it", exc_info=error)
    logs.flush()
