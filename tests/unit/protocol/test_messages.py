from __future__ import annotations

import json

import pytest

from imdsproxy.protocol.messages import Failure, FailureKind, Key, Refusal, Response, Target

TARGET = Target(
    b"/Metadata/Instance/?Nonce=1",
    ("metadata", "instance"),
    (("nonce", "1"),),
    Key("/Metadata/Instance/?Nonce=1"),
)


def test_path_is_spelled_in_lower_case_without_a_trailing_slash() -> None:
    assert TARGET.path == "/metadata/instance"


def test_path_without_segments_is_the_root() -> None:
    assert Target(b"/", (), (), Key("/?")).path == "/"


@pytest.mark.parametrize(("name", "there"), [("nonce", True), ("nonc", False), ("1", False), ("", False)])
def test_parameter_is_found_by_its_whole_name(name: str, there: bool) -> None:
    assert TARGET.has(name) is there


def test_targets_compare_by_identity() -> None:
    again = Target(TARGET.raw, TARGET.segments, TARGET.parameters, TARGET.key)
    assert again != TARGET
    assert len({TARGET, again, TARGET}) == 2


@pytest.mark.parametrize(("name", "value"), [(b"server", b"IMDS/1"), (b"x-two", b"first"), (b"date", None)])
def test_field_is_its_first_value_or_none(name: bytes, value: bytes | None) -> None:
    response = Response(200, ((b"server", b"IMDS/1"), (b"x-two", b"first"), (b"x-two", b"second")), b"")
    assert response.header(name) == value


def test_refusal_response_is_json_with_error_and_remedy() -> None:
    response = Refusal(403, "denied", "forbidden", "Ask for something else.", ((b"x-more", b"1"),)).response()
    assert response.status == 403
    assert response.headers == ((b"content-type", b"application/json; charset=utf-8"), (b"x-more", b"1"))
    assert json.loads(response.body) == {"error": "forbidden", "error_description": "Ask for something else."}


@pytest.mark.parametrize("text", ['"},{"', "a\r\nSet-Cookie: x", "\x00\x7f", "\u2028é\U0001f600", "\ud800"])
def test_refusal_body_is_one_line_of_ascii_json_for_any_text(text: str) -> None:
    body = Refusal(400, "bad-target", "invalid_request", text).response().body
    assert json.loads(body)["error_description"] == text
    assert all(0x20 <= byte < 0x80 for byte in body)


def test_given_body_replaces_the_proxys_wording() -> None:
    response = Refusal(400, "metadata-header", "invalid_request", "not this", body=b'{ "error": "IMDS" }').response()
    assert response.body == b'{ "error": "IMDS" }'
    assert response.header(b"content-type") == b"application/json; charset=utf-8"


# Promised: "IMDS unreachable or unreadable / too slow: 502 / 504 with Retry-After".
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.UNREACHABLE, 502),
        (FailureKind.RESET, 502),
        (FailureKind.UNREADABLE, 502),
        (FailureKind.UNEXPECTED, 502),
        (FailureKind.TOO_LARGE, 502),
        (FailureKind.TIMEOUT, 504),
        (FailureKind.SILENT, 504),
        (FailureKind.INTERNAL, 500),
        (FailureKind.DESCRIPTORS, 503),
    ],
)
def test_failure_refusal_has_its_status_and_retry_after(kind: FailureKind, status: int) -> None:
    refusal = Failure(kind, "It did not answer; ask again.").refusal(7)
    assert refusal.status == status
    assert refusal.reason == kind.value
    assert refusal.response().header(b"retry-after") == b"7"
    document = json.loads(refusal.response().body)
    assert document["error_description"] == "It did not answer; ask again."
    assert document["error"] == kind.value.replace("-", "_")


def test_loop_refusal_has_no_retry_after() -> None:
    refusal = Failure(FailureKind.LOOP, "Fix the rule.").refusal(7)
    assert (refusal.status, refusal.reason, refusal.error) == (508, "loop", "loop_detected")
    assert refusal.response().header(b"retry-after") is None


def test_every_failure_kind_is_in_the_table() -> None:
    assert len(FailureKind) == 10
