from __future__ import annotations

import pytest

from imdsproxy.protocol.messages import Refusal
from imdsproxy.server.connection_refusals import HEAD_TOO_LONG, LONGEST_HEAD, MALFORMED, UPGRADE_WITH_BODY
from imdsproxy.server.head_rules import head_of, refusal_of

Fields = tuple[tuple[bytes, bytes], ...]

CHUNKED = (b"transfer-encoding", b"chunked")
LENGTH = (b"content-length", b"5")
NO_LENGTH = (b"content-length", b"0")


@pytest.mark.parametrize(
    ("fields", "version", "upgrade", "refusal"),
    [
        ((), "1.1", False, None),
        ((), "1.0", False, None),
        ((), "2.0", False, MALFORMED),
        ((), "0.9", False, MALFORMED),
        ((CHUNKED,), "1.1", False, None),
        (((b"transfer-encoding", b" Chunked "),), "1.1", False, None),
        (((b"transfer-encoding", b"gzip"),), "1.1", False, MALFORMED),
        (((b"transfer-encoding", b"gzip, chunked"),), "1.1", False, MALFORMED),
        ((CHUNKED, CHUNKED), "1.1", False, MALFORMED),
        ((LENGTH,), "1.1", False, None),
        ((), "1.1", True, None),
        ((NO_LENGTH,), "1.1", True, None),
        ((LENGTH,), "1.1", True, UPGRADE_WITH_BODY),
        ((NO_LENGTH, LENGTH), "1.1", True, UPGRADE_WITH_BODY),
        ((CHUNKED,), "1.1", True, UPGRADE_WITH_BODY),
    ],
)
def test_head_is_refused_if_it_is_not_certain_where_its_body_ends(
    fields: Fields, version: str, upgrade: bool, refusal: Refusal | None
) -> None:
    assert refusal_of(b"/metadata", fields, version, upgrade=upgrade) is refusal


@pytest.mark.parametrize(("more", "refusal"), [(0, None), (1, HEAD_TOO_LONG)])
def test_head_is_refused_if_target_and_fields_are_longer_than_the_bound(more: int, refusal: Refusal | None) -> None:
    target, name = b"/metadata", b"x"
    value = b"a" * (LONGEST_HEAD - len(target) - len(name) + more)
    assert refusal_of(target, ((name, value),), "1.1", upgrade=False) is refusal


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ((), b"GET /a?b HTTP/1.1\r\n\r\n"),
        (((b"host", b"x"), (b"traceparent", b"y")), b"GET /a?b HTTP/1.1\r\nhost: x\r\ntraceparent: y\r\n\r\n"),
    ],
)
def test_head_for_observers_has_the_target_and_every_field(fields: Fields, head: bytes) -> None:
    assert head_of(b"GET /a?b", fields) == head
