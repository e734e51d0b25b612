from __future__ import annotations

import logging

import pytest

from imdsproxy.ops.access_log import FIELDS, log_request
from imdsproxy.protocol.messages import Refusal, Response
from imdsproxy.records import Client, Outcome, RequestRecord, refused

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
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
        ("age", 1),
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


TRACED = (
    b"GET /metadata/instance?resource=secret&API%2dversion=2021-02-01&x=1 HTTP/1.1\r\nHost: localhost\r\n"
    b"User-Agent:  azsdk-python-identity/1.17.1 Python/3.11.7 (Linux-6.8)\t\r\n"
    b"X-Ms-Client-Request-Id: 11111111-2222-3333-4444-555555555555\r\nMetadata: true\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nuser-agent: second\r\n\r\n"
)


def test_line_has_what_people_search_for(caplog: pytest.LogCaptureFixture) -> None:
    response = Response(200, ((b"x-ms-request-id", b"99999999-2222"), (b"server", b"IMDS")), b'{"access_token":"eyJ"}')
    record = RequestRecord(
        response, "instance", Outcome.STALE, 70, -10, detail="stale-if-error", upstream="500", waited=0.25
    )
    found = fields(caplog, record, ("user 1000 (app), process 7", 0), TRACED)
    assert list(found.items()) == [
        ("client", "user 1000 (app), process 7"),
        ("method", "GET"),
        ("path", "/metadata/instance"),
        ("api_version", "2021-02-01"),
        ("status", 200),
        ("outcome", "stale"),
        ("endpoint", "instance"),
        ("milliseconds", 1.234),
        ("age", 70),
        ("upstream_status", "500"),
        ("permit_wait_milliseconds", 250.0),
        ("x_ms_request_id", "99999999-2222"),
        ("x_ms_client_request_id", "11111111-2222-3333-4444-555555555555"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("user_agent", "azsdk-python-identity/1.17.1 Python/3.11.7 (Linux-6.8)"),
        ("detail", "stale-if-error"),
    ]
    assert tuple(found) == FIELDS


@pytest.mark.parametrize(
    ("field", "name", "logged"),
    [
        (b"User-Agent: " + b"a" * 200, "user_agent", "a" * 80),
        (b"User-Agent: ", "user_agent", None),
        (b"User-Agent: caf\xe9\x85", "user_agent", "caf\xe9\x85"),
        (b"x-ms-client-request-id: " + b"b" * 200, "x_ms_client_request_id", "b" * 64),
        (b"traceparent: " + PARENT + b"-later", "traceparent", PARENT.decode()),
        (b"traceparent: Bearer eyJ0eXAi", "traceparent", None),
    ],
)
def test_field_is_short_and_a_trace_is_a_trace(
    caplog: pytest.LogCaptureFixture, field: bytes, name: str, logged: str | None
) -> None:
    head = b"GET /metadata/instance HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n"
    assert fields(caplog, request=head).get(name) == logged


@pytest.mark.parametrize(
    ("query", "logged"),
    [
        (b"api-version=2018-02-01&api-version=2", "2018-02-01"),
        (b"client_id=x", None),
        (b"api-version=", None),
        (b"api-version=" + b"%41" * 100, "A" * 40),
    ],
)
def test_api_version_is_all_that_is_logged_of_a_query(
    caplog: pytest.LogCaptureFixture, query: bytes, logged: str | None
) -> None:
    assert fields(caplog, request=b"GET /metadata/instance?" + query).get("api_version") == logged


def test_nothing_is_prepared_below_the_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "imdsproxy.access"):
        log_request(HIT, 0.0, CLIENT, b"no request at all, which would raise")
    assert not caplog.records
