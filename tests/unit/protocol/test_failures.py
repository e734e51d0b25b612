"""Which results are failures of IMDS, as tables, and with the answers of the emulator."""

from __future__ import annotations

import json
import random

import pytest

from imdsproxy.emulator import answers, documents
from imdsproxy.emulator.events import EVENT_VERSIONS
from imdsproxy.emulator.machine import Machine
from imdsproxy.emulator.messages import Request as Asked
from imdsproxy.protocol.failures import DEFAULT_RETRIED, FailureRules
from imdsproxy.protocol.messages import Failure, FailureKind, Request, Response, Target
from imdsproxy.protocol.target import read_target
from tests.size import size
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

RULES = FailureRules()
LEAF = "/metadata/instance/compute/name?api-version=2021-02-01"
TEXT = LEAF + "&format=text"
INFO = "/metadata/identity/info?api-version=2018-02-01"
BALANCER = "/metadata/loadbalancer?api-version=2020-10-01"
ATTESTED = "/metadata/attested/document?api-version=2020-09-01"
UNKNOWN = "/metadata/reprovisiondata?api-version=2019-06-01"
PLATFORM = "/metadata/identity/getplatformmetadata?cred-api-version=2.0"


def asked(path: str, method: str = "GET") -> Request:
    target = read_target(path.encode())
    assert isinstance(target, Target), target
    return Request(method, target)


def failed(path: str, status: int, method: str = "GET", rules: FailureRules = RULES) -> bool:
    return rules.judge(asked(path, method), Response(status, (), b"")).failed


def foreign(path: str, body: bytes, media_type: str = "application/json; charset=utf-8", method: str = "GET") -> bool:
    fields = ((b"content-type", media_type.encode()),) if media_type else ()
    verdict = RULES.judge(asked(path, method), Response(200, fields, body))
    unexpected = isinstance(verdict.result, Failure) and verdict.result.kind is FailureKind.UNEXPECTED
    assert (verdict.failed, verdict.retried) == (unexpected, unexpected)
    return unexpected


@pytest.mark.parametrize(
    ("status", "instance", "token", "info", "platform", "unknown"),
    [
        (204, True, True, True, False, False),
        (302, True, True, True, False, False),
        (304, True, True, True, False, False),
        (400, False, False, False, False, False),
        (401, False, False, False, False, False),
        (403, False, False, False, False, False),
        (404, False, True, True, False, False),
        (405, False, False, False, False, False),
        (408, False, False, False, False, False),
        (410, True, True, True, True, True),
        (429, True, True, True, True, True),
        (500, True, True, True, True, True),
        (501, True, True, True, True, True),
        (503, True, True, True, True, True),
        (599, True, True, True, True, True),
    ],
)
def test_status_decides_whether_imds_failed(  # noqa: PLR0917  # one argument a column
    status: int, instance: bool, token: bool, info: bool, platform: bool, unknown: bool
) -> None:
    paths = (INSTANCE, TOKEN, INFO, PLATFORM, UNKNOWN)
    assert tuple(failed(path, status) for path in paths) == (instance, token, info, platform, unknown)
    assert failed(LEAF, status) is instance


@pytest.mark.parametrize("status", range(200, 600))
def test_retry_statuses_are_failures_too(status: int) -> None:
    verdict = RULES.judge(asked(TEXT), Response(status, (), b""))
    assert verdict.retried is (status in DEFAULT_RETRIED)
    assert verdict.failed or not verdict.retried
    added = FailureRules(frozenset({status})).judge(asked(TEXT), Response(status, (), b""))
    assert (added.failed, added.retried) == (True, True)


def test_status_removed_from_retry_statuses_is_still_a_failure() -> None:
    verdict = FailureRules(frozenset()).judge(asked(INSTANCE), Response(503, (), b""))
    assert (verdict.failed, verdict.retried) == (True, False)


@pytest.mark.parametrize("kind", FailureKind)
def test_missing_answer_is_a_failure(kind: FailureKind) -> None:
    verdict = RULES.judge(asked(INSTANCE), Failure(kind, "It failed."))
    assert (verdict.failed, verdict.word, verdict.description) == (True, kind.value, "It failed.")


def test_verdict_has_a_label_and_a_description() -> None:
    verdict = RULES.judge(asked(INSTANCE), Response(503, (), b""))
    assert (verdict.word, verdict.description) == ("503", "status 503")


def test_acknowledgement_may_be_empty_with_any_2xx() -> None:
    assert not foreign(EVENTS, b"", method="POST")
    assert not failed(EVENTS, 204, "POST")
    assert failed(EVENTS, 500, "POST")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (VERSIONS, b'{"apiVersions":["2017-03-01"]}'),
        (INSTANCE, b'{"compute":{},"network":{}}'),
        (INSTANCE, b'{"network":{"interface":[]}}'),
        (INSTANCE, b'\r\n{"Compute":{}}\n'),
        (INSTANCE, b'\xef\xbb\xbf{"compute":{"tags":"\xff\x00\t"}}'),
        (INSTANCE + "&format=text", b"compute/\nnetwork/"),
        (LEAF, b'"vm"'),
        (LEAF, b"[]"),
        (LEAF, b"{}"),
        (LEAF, b"3"),
        (LEAF, b"1" * 5000),
        (TEXT, b""),
        (TEXT, b"<b>a tag's value</b>"),
        (TEXT, b"a:b;c:d"),
        (ATTESTED, b'{"encoding":"pkcs7","signature":"x"}'),
        (EVENTS, b'{"DocumentIncarnation":2}'),
        (EVENTS, b'{"Events":[]}'),
        (BALANCER, b'{"loadbalancer":{}}'),
        (INFO, b'{"tenantId":""}'),
        (TOKEN, b'{"access_token":"x"}'),
        (TOKEN + "&client_id=ABC", b'{"access_token":"x","client_id":"abc"}'),
        (TOKEN + "&client_id=ABC", b'{"access_token":"x","client_id":""}'),
        (TOKEN + "&object_id=ABC", b'{"access_token":"x","client_id":"abc"}'),
        (UNKNOWN, b"<html>"),
        (UNKNOWN, b""),
        (PLATFORM, b""),
        ("/metadata/instanceX", b""),
        ("/metadata/versions/more", b""),
        (INSTANCE, b'{"compute":"' + b"x" * 200_000 + b'"}'),
        (LEAF, b"[" + b"1," * 200_000 + b"1]"),
    ],
)
def test_possible_answer_of_imds_is_accepted(path: str, body: bytes) -> None:
    assert not foreign(path, body)


@pytest.mark.parametrize("path", [VERSIONS, INSTANCE, LEAF, ATTESTED, EVENTS, BALANCER, INFO, TOKEN])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" \r\n", b"<html></html>", b"<!DOCTYPE html>", b"<?xml version='1.0'?>", b"{", b'{"compute":{"name":"'),
        *(
            b"OK",
            b"Service Unavailable",
            b"\x00",
            b"[" * 100_000,
            b'{"compute":"' + b"x" * 200_000,
            b"x" * 200_000 + b"}",
        ),
        *(b'{"compute":{},"apiVersions":[]}}', b'{"compute":"\xff}'),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_answer_without_a_document_is_a_failure(path: str, body: bytes) -> None:
    assert foreign(path, body)
    assert foreign(path, body, "")
    assert foreign(path, body, "text/html")


@pytest.mark.parametrize("path", [VERSIONS, INSTANCE, ATTESTED, EVENTS, BALANCER, INFO, TOKEN])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'"x"', b"3", b'{"error":"x"}', b'[{"compute":1}]'])
def test_json_without_the_documents_names_is_a_failure(path: str, body: bytes) -> None:
    assert foreign(path, body)


@pytest.mark.parametrize(
    "body", [b'{"access_token":null}', b'{"access_token":""}', b'{"access_token":1}', b'{"access_token":["x"]}']
)
def test_access_token_that_is_no_text_is_a_failure(body: bytes) -> None:
    assert foreign(TOKEN, body)


def test_token_of_another_identity_is_a_failure() -> None:
    assert foreign(TOKEN + "&client_id=abc", b'{"access_token":"x","client_id":"abd"}')


@pytest.mark.parametrize(
    ("body", "media_type", "is_foreign"),
    [
        (b"x", "text/html", True),
        (b"<!doctype HTML ><p>", "text/plain", True),
        (b" <html lang=en>", "text/plain", True),
        (b"x", "text/plain; charset=utf-8", False),
        (b"x", "", False),
        (b"<htmlx>", "text/plain", False),
    ],
)
def test_text_leaf_may_be_any_text_but_html(body: bytes, media_type: str, is_foreign: bool) -> None:
    assert foreign(TEXT, body, media_type) is is_foreign


def test_leaf_may_be_text_without_format_text() -> None:
    assert not foreign(LEAF, b"vm", "text/plain")
    assert not foreign(LEAF, b"", "text/plain")
    assert foreign(INSTANCE, b"vm", "text/plain")


def test_coded_body_is_not_judged() -> None:
    response = Response(200, ((b"content-encoding", b"gzip"),), b"\x1f\x8b")
    assert not RULES.judge(asked(INSTANCE), response).failed


def ways(element: object, way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = element.items() if isinstance(element, dict) else enumerate(element) if isinstance(element, list) else ()
    return [way, *(found for name, child in children for found in ways(child, (*way, str(name))))]


@pytest.mark.no_cover
@pytest.mark.parametrize("version", documents.INSTANCE_VERSIONS[:: size(short=4, full=1)])
def test_no_answer_of_the_emulated_imds_is_refused_in_any_version(version: str) -> None:
    machine = Machine()
    for way in ways(documents.at_version(machine.instance, version)):
        for form in ("", "&format=json", "&format=text"):
            path = "/".join(("/metadata/instance", *way)) + f"?api-version={version}{form}"
            assert_passes(machine, path)


@pytest.mark.parametrize(
    "path",
    [
        *(VERSIONS, ATTESTED, ATTESTED + "&nonce=1", BALANCER, INFO, TOKEN.replace("=x", "=https://vault.azure.net")),
        INSTANCE.replace("2021-02-01", "2021-08-01") + "&extended=true",
        *(f"/metadata/scheduledevents?api-version={version}" for version in EVENT_VERSIONS),
    ],
)
def test_no_document_of_the_emulated_imds_is_refused(path: str) -> None:
    assert assert_passes(Machine(), path) == 200


def assert_passes(machine: Machine, path: str) -> int:
    route, _, query = path.partition("?")
    pairs = tuple((name, value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair))
    answer = answers.answer(machine, Asked("GET", route, pairs, (("metadata", "true"),)), 1.0)
    fields = () if answer.content_type is None else ((b"content-type", answer.content_type.encode()),)
    response = Response(answer.status, fields, answer.body)
    verdict = RULES.judge(asked(path), response)
    assert not verdict.failed, (path, verdict)
    return answer.status


def test_truncated_document_is_a_failure() -> None:
    whole = json.dumps({"compute": {"name": "vm", "tagsList": [{"name": "a", "value": "b"}]}, "network": {}}).encode()
    for end in random.Random(3).sample(range(len(whole)), 30):
        assert foreign(INSTANCE, whole[:end])
    assert not foreign(INSTANCE, whole)
