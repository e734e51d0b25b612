"""Logging: one record a line on standard error, as text or as JSON. Characters that would break a line are escaped.

Logging never waits: see `log_writer`. Fields are passed beside the message:
`logger.info("listening", extra={"fields": {"port": 8254}})`.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from imdsproxy.errors import printable
from imdsproxy.ops.log_limit import RepeatLimit
from imdsproxy.ops.log_writer import LogWriter

_FORMATS = ("text", "json")
_OWN = "imdsproxy"
_writer = LogWriter(lambda count: _TextFormatter().format(_dropped_record(count)))


def configure(level: str, log_format: str) -> None:
    """Send the log to standard error. Another call replaces the settings of the last.

    Args:
        level: The lowest level that is logged: debug, info, warning or error.
        log_format: text or json.

    Raises:
        ValueError: There is no such level or format.
    """
    threshold = logging.getLevelNamesMapping().get(level.upper())
    if threshold is None or log_format not in _FORMATS:
        raise ValueError(f"no such log level or format: {level}, {log_format}")
    handler = _Handler()
    formatter = _JsonFormatter() if log_format == "json" else _TextFormatter()
    handler.setFormatter(formatter)
    _writer.notice = lambda count: formatter.format(_dropped_record(count))
    reserved = max(threshold, logging.WARNING)
    levels = {
        "imdsproxy": threshold,
        "uvicorn": threshold if threshold <= logging.DEBUG else reserved,
        # Below a warning these write whole URLs, and so the resource of a token request.
        "uvicorn.access": reserved,
        "httpcore": reserved,
        "httpx": reserved,
        # asyncio reports unretrieved exceptions here.
        "asyncio": reserved,
    }
    for name, least in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(least)
        logger.handlers[:] = [handler]
        logger.propagate = False


def dropped() -> int:
    """Return how many lines were not written since the process began."""
    return _writer.dropped


def flush() -> bool:
    """Wait until all lines are written, for two seconds at most; return whether they are."""
    return _writer.flush()


def _dropped_record(count: int) -> logging.LogRecord:
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log lines dropped", None, None)
    record.fields = {"count": count}
    return record


class _Handler(logging.Handler):
    """Formats a record where it arises, and passes the line to the writer.

    Warnings of libraries are limited, because clients can cause them as often as they like.
    """

    def __init__(self) -> None:
        super().__init__()
        self._limit = RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] != _OWN:
            left_out = self._limit.admit(_place(record), time.monotonic())
            if left_out is None:
                return
            if left_out:
                record.fields = {**_fields(record), "not_logged": left_out}
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a value that cannot be printed must not take the proxy down
            line = self.format(_in_place_of(record, error))
        _writer.put(line)

    def flush(self) -> None:
        """Wait until all lines are written, for two seconds at most."""
        _writer.flush()


def _place(record: logging.LogRecord) -> tuple[object, ...]:
    """Return what identifies a repeated record: the line of code, and the type of its exception.

    Messages do not identify it, because they may contain a client's bytes.
    """
    return record.name, record.pathname, record.lineno, record.exc_info and record.exc_info[0]


def _in_place_of(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    message, place = "log record that cannot be formatted: %s", (record.pathname, record.lineno)
    return logging.LogRecord(record.name, logging.ERROR, *place, message, (type(error).__name__,), None)


class _TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z info imdsproxy.server.run message key=value`, a traceback indented below."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname.lower(), record.name, printable(_message(record))]
        words += [f"{printable(key)}={_quoted(value)}" for key, value in _fields(record).items()]
        below = ["    " + printable(line) for line in _traceback(self, record).splitlines()]
        return "\n".join([" ".join(words), *below])


class _JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message, then exception if there is one, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        traceback = _traceback(self, record)
        if traceback:
            entry["exception"] = traceback
        for key, value in _fields(record).items():
            # A field must not replace one of the record's own.
            entry[f"{key}_" if key in entry else key] = value
        try:
            return json.dumps(entry, default=str, allow_nan=False)
        except (TypeError, ValueError):
            # Infinity, a circular reference, a key that is no string: the text matters more than the types.
            return json.dumps({key: str(value) for key, value in entry.items()})


def _time(record: logging.LogRecord) -> str:
    seconds, milliseconds = divmod(round(record.created * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {record.args}"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return {str(key): value for key, value in fields.items()} if isinstance(fields, dict) else {}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(mark in text for mark in ' "=\\'):
        return printable(text)
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
