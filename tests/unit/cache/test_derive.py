"""Which parts are cut out of a stored instance document, byte for byte, and which are requested from IMDS."""

from __future__ import annotations

import dataclasses

import pytest

from imdsproxy.cache.derive import cut, derive, wholes
from imdsproxy.cache.freshness import Entry, make_entry
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Response
from tests.targets import target_of

DOCUMENT = (
    b'{"compute":{"vmId":"02aab8a4","tags":"","name":"a \\"b\\" \\u00e9 \xc3\xa9","count":3,"on":true,"none":null,'
    b'"tagsList":[{"name":"a","value":"b c"},{"name":"d","value":""}],"empty":{},"list":[]},'
    b'"network":{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.0.0.4"}]}}],"names":["x","y"]}}'
)
LIFETIMES = Lifetimes(fresh=300, revalidate=300, stale_if_error=3600)
JSON = (b"content-type", b"application/json; charset=utf-8")
SERVER = (b"server", b"IMDS/150.870.65.1854")
VERSION = "api-version=2021-02-01"


def whole(response: Response, sent_at: float = 100.0) -> Entry:
    entry = make_entry(response, LIFETIMES, sent_at, sent_at)
    assert entry is not None
    return entry


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("compute/vmId", b"02aab8a4"),
        ("compute/tags", b""),
        ("compute/name", 'a "b" é é'.encode()),
        ("compute/tagsList/0/value", b"b c"),
        ("network/interface/0/ipv4/ipAddress/0/privateIpAddress", b"10.0.0.4"),
        ("network/names/1", b"y"),
    ],
)
def test_string_leaf_is_its_text(way: str, expected: bytes) -> None:
    assert cut(DOCUMENT, way.split("/"), text=True) == expected


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("compute/tagsList", b'[{"name":"a","value":"b c"},{"name":"d","value":""}]'),
        ("compute/tagsList/1", b'{"name":"d","value":""}'),
        ("network/interface/0/ipv4", b'{"ipAddress":[{"privateIpAddress":"10.0.0.4"}]}'),
        ("network/names", b'["x","y"]'),
        ("compute", DOCUMENT[len(b'{"compute":') : DOCUMENT.index(b',"network"')]),
    ],
)
def test_subtree_has_imds_own_bytes(way: str, expected: bytes) -> None:
    assert cut(DOCUMENT, way.split("/"), text=False) == expected


def test_whole_is_a_part_of_itself() -> None:
    assert cut(DOCUMENT, [], text=False) == DOCUMENT


@pytest.mark.parametrize("way", ["compute/count", "compute/on", "compute/none"])
def test_leaf_that_is_no_string_is_not_derived(way: str) -> None:
    assert cut(DOCUMENT, way.split("/"), text=True) is None
    assert cut(DOCUMENT, way.split("/"), text=False) is None


@pytest.mark.parametrize(
    "way",
    [
        *("compute/vmid", "Compute/vmId", "compute/missing", "compute/vmId/0", "network/interface/1"),
        *("network/interface/00", "network/interface/-1", "network/interface/+0", "network/interface/x"),
        *("compute/count/0", "0"),
    ],
)
@pytest.mark.parametrize("text", [True, False])
def test_missing_or_differently_spelled_node_is_not_derived(way: str, text: bool) -> None:
    assert cut(DOCUMENT, way.split("/"), text=text) is None


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("compute/vmId", False),  # IMDS answers 400: a leaf wants format=text
        ("compute", True),  # its listing of children is not known
        ("network/names", True),
        ("compute/empty", False),  # nor is what it says of an empty container
        ("compute/list", False),
    ],
)
def test_undocumented_format_is_not_derived(way: str, text: bool) -> None:
    assert cut(DOCUMENT, way.split("/"), text=text) is None


@pytest.mark.parametrize(
    "document",
    [
        b'{"compute": {"vmId":"a"}}',
        b'{"compute":{"vmId" :"a"}}',
        b'{"compute":{"vmId":"a" }}',
        b'{"compute":{"vmId":"a"}}\n',
        b' {"compute":{"vmId":"a"}}',
        b'{"compute":{"vmId":"a","vmId":"a"}}',
        b'{"compute":{"vmId":"a","VMID":"a"}}',
        b'{"compute":{"vmId":"\\ud800"}}',
        b'{"compute":{"vmId":"a"}',
        b'{"compute":{"vmId":"a"}}}',
        b'{"compute":{"vmId":"\xff"}}',
        b"not json",
        b"",
        b"[" * 100_000,
    ],
)
def test_malformed_document_is_not_derived_from(document: bytes) -> None:
    assert cut(document, ["compute", "vmId"], text=True) is None


def test_subtree_that_is_not_compact_is_not_derived() -> None:
    assert cut(b'{"a":{"b":[1, 2]},"c":{"d":" , "}}', ["a"], text=False) is None
    assert cut(b'{"a":{"b":[1, 2]},"c":{"d":" , "}}', ["c"], text=False) == b'{"d":" , "}'


def test_wholes_of_a_target_nearest_first() -> None:
    asked = target_of(f"/metadata/instance/compute/vmId?{VERSION}&format=text")
    base = "/metadata/instance"
    assert list(wholes(asked)) == [
        (f"{base}/compute/vmId?{VERSION}", ()),
        (f"{base}/compute/vmId?{VERSION}&format=json", ()),
        (f"{base}/compute?{VERSION}", ("vmId",)),
        (f"{base}/compute?{VERSION}&format=json", ("vmId",)),
        (f"{base}?{VERSION}", ("compute", "vmId")),
        (f"{base}?{VERSION}&format=json", ("compute", "vmId")),
    ]


def test_wholes_include_those_with_format_json() -> None:
    plain, json = f"/metadata/instance?{VERSION}", f"/metadata/instance?{VERSION}&format=json"
    assert list(wholes(target_of(plain))) == [(json, ())]
    assert list(wholes(target_of(json))) == [(plain, ())]


@pytest.mark.parametrize(
    "asked",
    [
        f"/metadata/instance/compute/vmId?{VERSION}&format=text&extended=true",
        f"/metadata/instance/compute/vmId?{VERSION}&format=Text",
        f"/metadata/instance/compute/vmId?{VERSION}&Format=text",
        f"/metadata/instance/compute/vmId?{VERSION}&format=xml",
        f"/metadata/instance/compute/vmId?{VERSION}&bypass_cache=true",
        f"/metadata/instance/compute/vmId?{VERSION}&&format=text",
        "/metadata/instance/compute/vmId?Api-Version=2021-02-01",
        "/metadata/instance/compute/vmId?api-version=",
        "/metadata/instance/compute/vmId?format=text",
        "/metadata/instance/compute/vmId",
        f"/metadata/loadbalancer?{VERSION}",
        f"/metadata/scheduledevents/x?{VERSION}",
        "/metadata/identity/oauth2/token?api-version=2018-02-01",
        f"/metadata?{VERSION}",
    ],
)
def test_ambiguous_target_has_no_wholes(asked: str) -> None:
    assert list(wholes(target_of(asked))) == []


class TestEntry:
    LEAF = f"/metadata/instance/compute/vmId?{VERSION}&format=text"

    def test_part_has_its_own_lifetimes_from_the_wholes_request(self) -> None:
        part = derive(whole(Response(200, (SERVER, JSON), DOCUMENT)), ("compute", "vmId"), target_of(self.LEAF),
                      Lifetimes(fresh=30, revalidate=5, stale_if_error=50), 110)  # fmt: skip
        assert part is not None
        assert (part.sent_at, part.fresh_until, part.revalidate_until, part.error_until) == (100, 130, 135, 180)
        assert part.derived

    def test_leaf_is_plain_text_with_the_other_fields_of_imds(self) -> None:
        part = derive(whole(Response(200, (SERVER, JSON), DOCUMENT)), ("compute", "vmId"), target_of(self.LEAF),
                      LIFETIMES, 110)  # fmt: skip
        assert part is not None
        assert part.response == Response(200, (SERVER, (b"content-type", b"text/plain; charset=utf-8")), b"02aab8a4")

    def test_subtree_has_the_fields_of_the_whole(self) -> None:
        asked = target_of(f"/metadata/instance/compute/tagsList/1?{VERSION}")
        part = derive(whole(Response(200, (SERVER, JSON), DOCUMENT)), ("compute", "tagsList", "1"), asked,
                      LIFETIMES, 110)  # fmt: skip
        assert part is not None
        assert part.response == Response(200, (SERVER, JSON), b'{"name":"d","value":""}')

    def test_part_includes_the_wholes_age_in_other_caches(self) -> None:
        aged = whole(Response(200, (SERVER, JSON, (b"age", b"20")), DOCUMENT))
        part = derive(aged, ("compute", "vmId"), target_of(self.LEAF), LIFETIMES, 110)
        assert part is not None
        assert (part.fresh_until, part.age(110)) == (380, 30)

    @pytest.mark.parametrize(
        "entry",
        [
            whole(Response(200, (SERVER, JSON), DOCUMENT.replace(b'"02aab8a4"', b"7"))),
            whole(Response(200, (SERVER, (b"content-type", b"text/plain")), DOCUMENT)),
            whole(Response(200, (SERVER,), DOCUMENT)),
            dataclasses.replace(
                whole(Response(200, (JSON,), DOCUMENT)), response=Response(404, (SERVER, JSON), DOCUMENT)
            ),
        ],
    )
    def test_derive_returns_none_for_other_documents(self, entry: Entry) -> None:
        assert derive(entry, ("compute", "vmId"), target_of(self.LEAF), LIFETIMES, 110) is None

    def test_derive_returns_none_for_an_expired_part(self) -> None:
        entry = whole(Response(200, (SERVER, JSON), DOCUMENT))
        asked = target_of(self.LEAF)
        assert derive(entry, ("compute", "vmId"), asked, Lifetimes(fresh=10), 109.9) is not None
        assert derive(entry, ("compute", "vmId"), asked, Lifetimes(fresh=10), 110) is None
