from __future__ import annotations

import logging

import pytest

from imdsproxy.ops.access_log import log_request
from imdsproxy.protocol.messages import Refusal, Response
from imdsproxy.records import Client, Outcome, RequestRecord, refused

HIT = RequestRecord(Response(200, (), b"{}"), "instance", Outcome.HIT, age=1, ttl=59)
CLIENT = ("127.0.0.1", 4711)


def fields(
    caplog: pytest.LogCaptureFixture,
    record: RequestRecord = HIT,
    client: Client | None = CLIENT,
    request: bytes = b"GET /metadata/instance?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
) -> dict[str, object]:
    with caplog.at_level(logging.INFO, "imdsproxy.access"):
        log_request(record, 0.0012345, client, request)
    (line,) = caplog.records
    assert (line.name, line.getMessage()) == ("imdsproxy.access", "request")
    found = vars(line)["fields"]
    assert isinstance(found, dict)
    return found


def test_line_has_its_fields_in_their_order_and_no_query(caplog: pytest.LogCaptureFixture) -> None:
    assert list(fields(caplog).items()) == [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/metadata/instance"),
        ("status", 200),
        ("outcome", "hit"),
        ("endpoint", "instance"),
        ("milliseconds", 1.234),
    ]


def test_detail_of_a_record_is_the_last_field(caplog: pytest.LogCaptureFixture) -> None:
    assert list(fields(caplog, HIT._replace(detail="derived")).items())[-1] == ("detail", "derived")


def test_bytes_that_were_not_a_request_have_no_method_path_endpoint_or_time(caplog: pytest.LogCaptureFixture) -> None:
    record = refused(Refusal(400, "malformed", "invalid_request", "It cannot be read."))
    assert list(fields(caplog, record, request=b"").items()) == [
        ("client", "127.0.0.1"),
        ("status", 400),
        ("outcome", "refused"),
        ("detail", "malformed"),
    ]


@pytest.mark.parametrize(
    ("request_", "method", "path"),
    [
        (b"POST /metadata/scheduledevents", "POST", "/metadata/scheduledevents"),
        (b"GET -", "GET", "-"),
        (b"GET ", "GET", ""),
        (b"GET /m\xc3\xa9ta", "GET", "/m\\xc3\\xa9ta"),
        (b"GET /" + b"a" * 500, "GET", "/" + "a" * 199),
        (b"GET " + b"\xff" * 500, "GET", ("\\xff" * 50)),
    ],
)
def test_method_and_path_are_as_on_the_wire_but_printable_and_short(
    caplog: pytest.LogCaptureFixture, request_: bytes, method: str, path: str
) -> None:
    found = fields(caplog, request=request_)
    assert (found["method"], found["path"]) == (method, path)


def test_client_that_is_not_known_is_a_dash(caplog: pytest.LogCaptureFixture) -> None:
    assert fields(caplog, client=None)["client"] == "-"
