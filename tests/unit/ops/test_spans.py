from __future__ import annotations

import pytest

from imdsproxy.ops.spans import Attributes, attempt_end, attempt_start, is_page, request_end, request_start
from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.messages import BudgetClass, Response
from imdsproxy.protocol.peer import Peer, PeerKind
from imdsproxy.records import Client, KnownClient, Outcome, RequestRecord, UpstreamAttempt

GET = {"http.request.method": "GET"}


@pytest.mark.parametrize(
    ("head", "name", "attributes"),
    [
        (b"GET /metadata/instance", "GET", {**GET, "url.path": "/metadata/instance"}),
        (b"GET /a?client_id=1 HTTP/1.1\r\nHost: x\r\n\r\n", "GET", {**GET, "url.path": "/a"}),
        (b"GET /a#secret HTTP/1.1", "GET", {**GET, "url.path": "/a"}),
        (b"GET http://user:word@169.254.169.254/a/b?c HTTP/1.1", "GET", {**GET, "url.path": "/a/b"}),
        (b"GET http://169.254.169.254?c=/d HTTP/1.1", "GET", GET),
        (b"CONNECT 169.254.169.254:80 HTTP/1.1", "CONNECT", {"http.request.method": "CONNECT"}),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", {"http.request.method": "OPTIONS"}),
        (
            b"get /a HTTP/1.1",
            "HTTP",
            {"http.request.method": "_OTHER", "http.request.method_original": "get", "url.path": "/a"},
        ),
        (
            b"M\xff" + b"x" * 99 + b" /a HTTP/1.1",
            "HTTP",
            {"http.request.method": "_OTHER", "http.request.method_original": "M\\xff" + "x" * 15, "url.path": "/a"},
        ),
        (b"GET /" + b"x" * 999 + b" HTTP/1.1", "GET", {**GET, "url.path": "/" + "x" * 199}),
        (b"GET /\xff\xfe HTTP/1.1", "GET", {**GET, "url.path": "/\\xff\\xfe"}),
        (b"GET -", "GET", GET),
    ],
)
def test_start_of_a_request_has_its_method_and_path(head: bytes, name: str, attributes: Attributes) -> None:
    assert request_start(head) == (name, {"url.scheme": "http", **attributes})


def record(
    status: int = 200, outcome: Outcome = Outcome.HIT, endpoint: str = "instance", **more: object
) -> RequestRecord:
    return RequestRecord(Response(status, ((b"x-secret", b"s"),), b"body"), endpoint, outcome)._replace(**more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "client", "name", "attributes", "error"),
    [
        (
            record(age=3, ttl=57),
            ("10.0.0.4", 4711),
            "GET instance",
            {"client.address": "10.0.0.4", "client.port": 4711, "imdsproxy.age": 3, "imdsproxy.ttl": 57},
            None,
        ),
        (record(), ("::1", 5), "GET instance", {"client.address": "::1", "client.port": 5}, None),
        (
            record(),
            ("user 0 (root), process 12", 4711),
            "GET instance",
            {"imdsproxy.client": "user 0 (root), process 12", "client.port": 4711},
            None,
        ),
        (record(), ("process 12", 0), "GET instance", {"imdsproxy.client": "process 12"}, None),
        (
            record(),
            KnownClient(Peer(address="127.0.0.1", user=0, kind=PeerKind.TCP), ("127.0.0.1", 4711)),
            "GET instance",
            {"client.address": "127.0.0.1", "imdsproxy.client": "user 0", "client.port": 4711},
            None,
        ),
        (record(), ("", 0), "GET instance", {}, None),
        (record(), None, "GET instance", {}, None),
        (record(endpoint="none"), None, "GET", {"imdsproxy.endpoint": "none"}, None),
        (record(429, Outcome.REFUSED, detail="budget"), None, "GET instance", {"imdsproxy.detail": "budget"}, None),
        (
            record(502, Outcome.ERROR, detail="upstream-reset"),
            None,
            "GET instance",
            {"imdsproxy.detail": "upstream-reset"},
            "upstream-reset",
        ),
        (record(500, Outcome.ERROR), None, "GET instance", {}, "500"),
    ],
)
def test_end_of_a_request_has_its_record(
    answer: RequestRecord, client: Client | None, name: str, attributes: Attributes, error: str | None
) -> None:
    end = request_end(answer, client, "GET")
    assert (end.name, end.failed) == (name, error is not None)
    assert end.attributes == {
        "http.response.status_code": answer.response.status,
        "imdsproxy.outcome": answer.outcome.value,
        "imdsproxy.endpoint": answer.endpoint,
        **attributes,
        **({} if error is None else {"error.type": error}),
    }


@pytest.mark.parametrize(
    ("upstream", "where"),
    [
        (IMDS, {"url.full": "http://169.254.169.254/a", "server.address": "169.254.169.254", "server.port": 80}),
        (
            Address("127.0.0.1", 8255),
            {"url.full": "http://127.0.0.1:8255/a", "server.address": "127.0.0.1", "server.port": 8255},
        ),
        (
            Address("localhost", unix="/run/x"),
            {"url.full": "http://localhost/a", "server.address": "/run/x", "network.transport": "unix"},
        ),
    ],
)
def test_start_of_an_attempt_names_the_upstream_and_no_query(upstream: Address, where: Attributes) -> None:
    assert attempt_start("POST", b"/a?client_id=1", upstream) == (
        "POST",
        {"http.request.method": "POST", "url.path": "/a", **where},
    )


@pytest.mark.parametrize(
    ("status", "retried_after", "attributes", "failed"),
    [
        ("200", None, {"http.response.status_code": 200}, False),
        ("304", None, {"http.response.status_code": 304}, False),
        ("404", None, {"http.response.status_code": 404, "error.type": "404"}, True),
        ("410", "429", {"http.response.status_code": 410, "error.type": "410", "imdsproxy.retried_after": "429"}, True),
        ("upstream-reset", None, {"error.type": "upstream-reset"}, True),
        (None, None, {"error.type": "budget"}, True),
    ],
)
def test_end_of_an_attempt_has_its_record(
    status: str | None, retried_after: str | None, attributes: Attributes, failed: bool
) -> None:
    answer = Response(200, ((b"x-secret", b"s"),), b"body")
    attempt = UpstreamAttempt(
        "token", BudgetClass.IDENTITY, 0.25, status, retried_after=retried_after, failure="words", response=answer
    )
    end = attempt_end(attempt, "GET")
    assert (end.name, end.failed) == ("GET token", failed)
    assert end.attributes == {
        "imdsproxy.endpoint": "token",
        "imdsproxy.budget": "identity",
        "imdsproxy.wait": 0.25,
        **attributes,
    }


@pytest.mark.parametrize(
    ("target", "page"),
    [
        (b"/-/metrics", True),
        (b"/-", True),
        (b"/-?a", True),
        (b"/%2d/metrics", True),
        (b"http://127.0.0.1:8254/-/metrics", True),
        (b"/metadata/-/", False),
        (b"/-x", False),
        (b"-", False),
        (b"*", False),
    ],
)
def test_pages_of_the_proxy_are_recognised(target: bytes, page: bool) -> None:
    assert is_page(target) is page
