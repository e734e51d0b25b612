from __future__ import annotations

import json

import pytest

from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import Refusal, Request
from imdsproxy.protocol.request_parser import read
from imdsproxy.server.purge import dropped, path_to_drop

TRUE = (b"metadata", b"true")


def ask(query: str, *fields: tuple[bytes, bytes], method: str = "POST") -> Request | Refusal:
    return read(method, f"/-/purge{query}".encode(), [(b"host", b"127.0.0.1"), *fields], AcceptedHosts())


def judged(query: str, *fields: tuple[bytes, bytes], privileged: bool = True) -> str | Refusal | None:
    request = ask(query, *fields)
    assert isinstance(request, Request)
    return path_to_drop(request, privileged=privileged)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("", None),
        ("?path=/metadata", "/metadata"),
        ("?path=/metadata/instance/", "/metadata/instance"),
        ("?path=/METADATA/Instance/compute", "/metadata/instance/compute"),
        ("?path=%2Fmetadata%2Finstance", "/metadata/instance"),
        ("?PATH=//metadata/versions", "/metadata/versions"),
    ],
)
def test_path_is_read_as_the_cache_has_it(query: str, path: str | None) -> None:
    assert judged(query, TRUE) == path


@pytest.mark.parametrize(
    "query",
    [
        "?path=",
        "?path",
        "?path=metadata",
        "?path=/-/status",
        "?path=/",
        "?path=/metadata/../etc",
        "?path=/metadata//instance",
        "?path=/metadata/instance%3Fapi-version=1",
        "?path=http://169.254.169.254/metadata",
        "?path=/metadata/%C3%A9",
        "?path=/metadata/" + "a" * 1100,
        "?path=/metadata&all=1",
        "?other=/metadata",
    ],
)
def test_path_that_names_no_entries_is_refused(query: str) -> None:
    refusal = judged(query, TRUE)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "purge-path")


@pytest.mark.parametrize("fields", [(), ((b"metadata", b"false"),), (TRUE, TRUE)], ids=repr)
def test_purge_needs_the_clients_own_header(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    refusal = judged("", *fields)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "metadata-header")


def test_purge_over_the_port_is_refused_before_anything_else() -> None:
    refusal = judged("?path=x", privileged=False)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (403, "purge-elsewhere")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_purge_accepts_post_only(method: str) -> None:
    refusal = ask("", TRUE, method=method)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.headers) == (405, ((b"allow", b"POST"),))


@pytest.mark.parametrize("field", [(b"origin", b"http://127.0.0.1"), (b"sec-fetch-site", b"same-origin")])
def test_purge_by_a_web_page_is_refused(field: tuple[bytes, bytes]) -> None:
    refusal = ask("", TRUE, field)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 403


def test_answer_says_how_many_entries_were_dropped() -> None:
    assert json.loads(dropped("/metadata/instance", 3).body) == {"dropped": 3, "path": "/metadata/instance"}
    assert json.loads(dropped(None, 0).body) == {"dropped": 0, "path": None}
