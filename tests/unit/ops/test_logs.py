"""The log: its two formats, escaping, and a standard error that is not read."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from imdsproxy.ops import logs

NAMES = ("imdsproxy", "uvicorn", "uvicorn.access", "httpcore", "httpx", "asyncio")
logger = logging.getLogger("imdsproxy.server.run")


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(item.level, item.handlers[:], item.propagate) for item in loggers]
    yield
    logs.flush()
    for item, (level, handlers, propagate) in zip(loggers, before, strict=True):
        item.setLevel(level)
        item.handlers[:] = handlers
        item.propagate = propagate


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    make = logging.getLogRecordFactory()

    def stopped(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        record.created = 1767323045.678
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", stopped)


def read_log(capsys: pytest.CaptureFixture[str]) -> str:
    assert logs.flush()
    return capsys.readouterr().err


def fail(text: str) -> None:
    raise ValueError(text)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("message", "fields", "line"),
    [
        ("listening", {}, "listening"),
        ("listening", {"host": "127.0.0.1", "port": 8254}, "listening host=127.0.0.1 port=8254"),
        ("x", {"empty": "", "none": None, "yes": True}, 'x empty="" none=None yes=True'),
        ("x", {"words": "a b", "quote": 'a"b', "equals": "a=b"}, 'x words="a b" quote="a\\"b" equals="a=b"'),
        ("x", {"path": "C:\\x"}, 'x path="C:\\\\x"'),
        ("x\r\nforged", {"a\nb": "c\nd e"}, 'x\\r\\nforged a\\nb="c\\nd e"'),
        ("\x1b[31m\x7f\x85\u2028\u202e", {}, "\\x1b[31m\\x7f\\x85\\u2028\\u202e"),
        ("\ud800 é", {}, "\\ud800 é"),
        ("x", "no mapping", "x"),
    ],
)
def test_text_format_has_time_level_name_message_and_fields(
    message: str, fields: object, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "text")
    logger.info(message, extra={"fields": fields})
    assert read_log(capsys) == f"2026-01-02T03:04:05.678Z info imdsproxy.server.run {line}\n"


def test_text_puts_an_exception_below_and_indented(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    try:
        fail("first\nsecond\x1b")
    except ValueError:
        logger.exception("failed", extra={"fields": {"attempt": 1}})
    first, *below = read_log(capsys).splitlines()
    assert first == "2026-01-02T03:04:05.678Z error imdsproxy.server.run failed attempt=1"
    assert below[0] == "    Traceback (most recent call last):"
    assert below[-2:] == ["    ValueError: first", "    second\\x1b"]
    assert all(line.startswith("    ") for line in below)


def test_text_puts_a_stack_below_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logger.info("here", stack_info=True)
    assert read_log(capsys).splitlines()[1] == "    Stack (most recent call last):"


def test_json_format_has_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logger.warning("a %s\n", "b\u2028", extra={"fields": {"port": 1, "path": "/x", "kind": ValueError("y")}})
    text = read_log(capsys)
    assert text.isascii()
    assert text.count("\n") == 1
    assert list(json.loads(text).items()) == [
        ("time", "2026-01-02T03:04:05.678Z"),
        ("level", "warning"),
        ("logger", "imdsproxy.server.run"),
        ("message", "a b\u2028\n"),
        ("port", 1),
        ("path", "/x"),
        ("kind", "y"),
    ]


def test_json_puts_an_exception_into_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        fail("first\nsecond")
    except ValueError:
        logger.exception("failed", extra={"fields": {"exception": "mine", "message": "forged"}})
    text = read_log(capsys)
    assert text.count("\n") == 1
    record = json.loads(text)
    assert record["exception"].startswith("Traceback")
    assert record["exception"].endswith("ValueError: first\nsecond")
    assert (record["message"], record["message_"], record["exception_"]) == ("failed", "forged", "mine")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), {(1, 2): 3}])
def test_json_line_is_valid_for_any_value(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logger.info("x", extra={"fields": {"value": value}})
    assert json.loads(read_log(capsys))["value"] == str(value)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_message_that_does_not_fit_its_arguments_is_written(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", log_format)
    logger.info("%d of %d", "one")  # noqa: PLE1206 - the slip is the test
    assert "%d of %d ('one',)" in read_log(capsys)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_unprintable_value_is_replaced_by_an_error_line(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", log_format)
    logger.info("x", extra={"fields": {"value": Unprintable()}})
    text = read_log(capsys)
    assert "log record that cannot be formatted: RuntimeError" in text
    assert text.count("\n") == 1


OTHERS = ["error uvicorn.access", "error httpx", "error httpcore.http11", "error asyncio"]


@pytest.mark.parametrize(
    ("level", "own", "uvicorn"),
    [
        ("debug", ["debug", "info", "error"], ["debug", "info", "error"]),
        ("info", ["info", "error"], ["error"]),
        ("warning", ["error"], ["error"]),
        ("error", ["error"], ["error"]),
    ],
)
def test_each_logger_has_its_level(
    level: str, own: list[str], uvicorn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level, "text")
    for name in ("imdsproxy", "uvicorn.error", "uvicorn.access", "httpx", "httpcore.http11", "asyncio"):
        for severity in (logging.DEBUG, logging.INFO, logging.ERROR):
            logging.getLogger(name).log(severity, "x")
    written = [" ".join(line.split()[1:3]) for line in read_log(capsys).splitlines()]
    assert written == [
        *(f"{severity} imdsproxy" for severity in own),
        *(f"{severity} uvicorn.error" for severity in uvicorn),
        *OTHERS,
    ]


def test_configure_replaces_earlier_settings(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "text")
    logs.configure("info", "json")
    logger.debug("x")
    logger.info("y")
    assert json.loads(read_log(capsys))["message"] == "y"


@pytest.mark.parametrize(("level", "log_format"), [("loud", "text"), ("info", "xml")])
def test_unknown_levels_and_formats_are_refused(level: str, log_format: str) -> None:
    with pytest.raises(ValueError, match="no such log level or format"):
        logs.configure(level, log_format)


def test_missing_standard_error_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure("info", "text")
    monkeypatch.setattr(sys, "stderr", None)
    before = logs.dropped()
    logger.info("x")
    assert logs.flush()
    assert logs.dropped() == before


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        raise ValueError("closed")


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "gone"),
        OSError(errno.ENOSPC, "disk full"),
        ValueError("closed"),
        RuntimeError("whatever"),
    ],
)
def test_failing_stream_raises_nothing_and_the_loss_is_reported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "text")
    before = logs.dropped()
    with monkeypatch.context() as failing:
        failing.setattr(sys, "stderr", Failing(error))
        logger.info("x")
        logger.info("y")
        assert logs.flush()
    assert logs.dropped() == before + 2
    logger.info("z")
    assert [line.split(" ", 1)[1] for line in read_log(capsys).splitlines()] == [
        "warning imdsproxy.ops.logs log lines dropped count=2",
        "info imdsproxy.server.run z",
    ]


def test_closed_pipe_does_not_end_the_program() -> None:
    program = (
        "import logging, sys\n"
        "from imdsproxy.ops import logs\n"
        "logs.configure('info', 'text')\n"
        "sys.stdin.read()\n"
        "for _ in range(3): logging.getLogger('imdsproxy').info('x' * 100_000)\n"
        "print('alive')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.upper().startswith("IMDSPROXY_")},
    )
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    output, _ = process.communicate(b"", timeout=30)
    assert output.split() == [b"alive"]
    assert process.returncode == 0
