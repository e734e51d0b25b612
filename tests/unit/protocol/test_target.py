from __future__ import annotations

import tracemalloc

import pytest

from imdsproxy.protocol.messages import Refusal, Target
from imdsproxy.protocol.target import read_target, size_of_reading


def read(raw: bytes) -> Target:
    target = read_target(raw)
    assert isinstance(target, Target), target
    return target


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        (b"/metadata/instance", ("metadata", "instance")),
        (b"/metadata/instance/", ("metadata", "instance")),
        (b"/METADATA/Identity/oauth2/token", ("metadata", "identity", "oauth2", "token")),
        (b"/metadata/%49nst%61nce", ("metadata", "instance")),
        (b"/%6d%65tadata", ("metadata",)),
        (b"/metadata/a%2Db%5Fc%7Ed", ("metadata", "a-b_c~d")),
        (b"/metadata/instance/network/interface/0", ("metadata", "instance", "network", "interface", "0")),
        (b"/metadata/instanceX", ("metadata", "instancex")),
        (b"/metadata-attacker", ("metadata-attacker",)),
        (b"/metadata/.hidden/a.b", ("metadata", ".hidden", "a.b")),
        (b"/metadata/a+b", ("metadata", "a+b")),
        (b"/metadata", ("metadata",)),
        (b"/metadata/", ("metadata",)),
        (b"/-/ready", ("-", "ready")),
        (b"/", ()),
        (b"/?api-version=1", ()),
    ],
)
def test_path_segments_are_decoded_and_in_lower_case(raw: bytes, segments: tuple[str, ...]) -> None:
    assert read(raw).segments == segments


# Paths that other readers could read differently.
@pytest.mark.parametrize(
    "path",
    [
        rb"/metadata/identity\oauth2\token",
        rb"/metadata\identity/oauth2/token",
        rb"\metadata/instance",
        b"/metadata/identity%5Coauth2%5Ctoken",
        b"/metadata/identity%5coauth2%5ctoken",
        b"/metadata%2Finstance",
        b"/metadata%2finstance",
        b"/metadata/instance%2F",
        b"/metadata/%252Finstance",
        b"/metadata/%2525",
        b"/metadata/%2E%2E/identity",
        b"/metadata/%2e%2e/identity",
        b"/metadata/instance%2E",
        b"/metadata/v%2E1",
        b"/metadata/instance/%2E",
        b"/metadata/instance%3Fapi-version=1",
        b"/metadata/instance%00",
        b"/metadata/instance%20",
        b"/metadata/instance%0D%0A",
        b"/metadata/instance%09",
        b"/metadata/instance%3B",
        b"/metadata/instance%2B",
        b"/metadata/instance%25",
        b"/metadata/instance%7F",
        b"/metadata/./instance",
        b"/metadata/.",
        b"/metadata/..",
        b"/metadata/../metadata/identity",
        b"/metadata/instance/../identity/oauth2/token",
        b"/./metadata/instance",
        b"/../metadata/instance",
        b"//metadata-attacker/instance",
        b"//instance/metadata",
        b"//-/healthy",
        b"/metadata//instance",
        b"//metadata//instance",
        b"/metadata/instance//",
        b"//",
        b"//169.254.169.254/metadata/instance",
        b"/metadata/instance;x=1",
        b"/metadata;x=1/instance",
        b"/metadata/instance;",
        b"/metadata/instance.",
        b"/metadata/instance./",
        b"/metadata./instance",
        b"/metadata/instance...",
        b"/metadata/instance#fragment",
        b"/metadata/instance#",
        "/metadata/\u0131nstance".encode(),
        "/metadata/identity".encode("utf-16-le"),
        "/metadata/identity\uff0foauth2".encode(),
        b"/metadata/%C4%B1nstance",
        b"/metadata/%EF%BC%8F",
        b"/metadata/%c0%af",
        b"/metadata/\xc0\xaf",
        b"/metadata/\xff",
        b"/metadata/instance\x00",
        b"/metadata/instance\r",
        b"/metadata/instance\n",
        b"/metadata/instance\t",
        b"/metadata/instance\x7f",
        b"/metadata/ instance",
        b"/metadata/instance ",
        b" /metadata/instance",
        b"/metadata/<instance>",
        b'/metadata/"instance"',
        b"/metadata/{instance}",
        b"/metadata/instance|",
        b"/metadata/instance^",
        b"/metadata/`instance",
        b"/metadata/[instance]",
        b"/metadata/%",
        b"/metadata/%6",
        b"/metadata/%zz",
        b"/metadata/%6g",
        b"/metadata/%u0069nstance",
        b"",
        b"*",
        b"metadata/instance",
        b"169.254.169.254:80",
        b"?api-version=1",
    ],
)
@pytest.mark.parametrize("query", [b"", b"?api-version=2021-02-01"], ids=["bare", "query"])
def test_ambiguous_path_is_refused(path: bytes, query: bytes) -> None:
    refusal = read_target(path + query)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "bad-target")


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (b"", ()),
        (b"api-version=2021-02-01", (("api-version", "2021-02-01"),)),
        (b"API-Version=2021-02-01&Format=JSON", (("api-version", "2021-02-01"), ("format", "JSON"))),
        (b"resource=https%3A%2F%2Fvault.azure.net", (("resource", "https://vault.azure.net"),)),
        (b"resource=https://vault.azure.net/?a=b", (("resource", "https://vault.azure.net/?a=b"),)),
        (b"%6Eonce=1", (("nonce", "1"),)),
        (b"a=1+2", (("a", "1 2"),)),
        (b"a=1%202", (("a", "1 2"),)),
        (b"a=1%2B2", (("a", "1+2"),)),
        (b"a=%26b%3D1", (("a", "&b=1"),)),
        (b"a", (("a", ""),)),
        (b"a=", (("a", ""),)),
        (b"=a", (("", "a"),)),
        (b"a==", (("a", "="),)),
        (b"a=%C3%A9", (("a", "é"),)),
        (b"a=/../\\;b?{}|^`\"<>'", (("a", "/../\\;b?{}|^`\"<>'"),)),
        (b"unknown=1", (("unknown", "1"),)),
    ],
)
def test_query_names_are_in_lower_case_and_values_decoded(
    query: bytes, parameters: tuple[tuple[str, str], ...]
) -> None:
    target = read(b"/metadata/instance?" + query)
    assert target.parameters == parameters


# Promised: "duplicated query names: 400".
@pytest.mark.parametrize(
    "query",
    [
        b"resource=a&resource=b",
        b"resource=a&resource=a",
        b"resource=a&Resource=b",
        b"resource=a&%72esource=b",
        b"resource=a&RESOURC%45=b",
        b"client_id=a&api-version=1&client_id",
        b"a&a",
        b"a&a=",
        b"=1&=2",
        b"a+b=1&a%20b=2",
        b"bypass_cache=true&bypass_cache=true",
    ],
)
def test_repeated_name_is_refused_in_any_spelling(query: bytes) -> None:
    refusal = read_target(b"/metadata/identity/oauth2/token?" + query)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "bad-target")
    assert "twice" in refusal.description


@pytest.mark.parametrize(
    "query",
    [
        b"a=1#b",
        b"a=1 2",
        b"a=\t",
        b"a=1\r\nMetadata: true",
        b"a=\x00",
        b"a=\x7f",
        b"a=\xe9",
        "a=é".encode(),
        b"a=%",
        b"a=%4",
        b"a=%zz",
        b"%=1",
        b"a=%ff",
        b"%C0%AF=1",
        b"a=%ED%A0%80",
        b"a=%00",
        b"a=%0d%0aX:1",
        b"a=%09",
        b"a=%7f",
        b"%0a=1",
    ],
)
def test_query_with_an_invalid_character_is_refused(query: bytes) -> None:
    refusal = read_target(b"/metadata/instance?" + query)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "bad-target")


@pytest.mark.parametrize(
    ("raw", "authority", "origin", "segments"),
    [
        (b"http://169.254.169.254/metadata/instance", "169.254.169.254:80", b"/metadata/instance", 2),
        (b"HTTP://169.254.169.254:80/metadata?a=1", "169.254.169.254:80", b"/metadata?a=1", 1),
        (b"http://169.254.169.254:8080/", "169.254.169.254:8080", b"/", 0),
        (b"http://169.254.169.254:/metadata", "169.254.169.254:80", b"/metadata", 1),
        (b"http://169.254.169.254", "169.254.169.254:80", b"/", 0),
        (b"http://169.254.169.254?a=1", "169.254.169.254:80", b"/?a=1", 0),
        (b"http://Attacker.Example/metadata", "attacker.example:80", b"/metadata", 1),
        (b"http://[FE80::1]:81/metadata", "[fe80::1]:81", b"/metadata", 1),
        (b"http://169.254.169.254:080/metadata", "169.254.169.254:080", b"/metadata", 1),
    ],
)
def test_absolute_form_has_authority_and_origin_form(raw: bytes, authority: str, origin: bytes, segments: int) -> None:
    target = read(raw)
    assert (target.authority, target.raw, len(target.segments)) == (authority, origin, segments)


def test_origin_form_has_no_authority() -> None:
    assert read(b"/metadata/instance").authority is None


@pytest.mark.parametrize(
    "raw",
    [
        b"http://user@169.254.169.254/metadata",
        b"http://user:password@169.254.169.254/metadata",
        b"http://169.254.169.254@attacker.example/metadata",
        b"http://169.254.169.254\\@attacker.example/metadata",
        b"http:///metadata/instance",
        b"http://:80/metadata",
        b"http://169.254.169.254:80:80/metadata",
        b"http://169.254.169.254:123456/metadata",
        b"http://169.254.169.254:-1/metadata",
        b"http://169.254.169.254%2Fmetadata",
        b"http://[::1/metadata",
        b"http://::1/metadata",
        b"http://a b/metadata",
        "http://\u0131mds/metadata".encode(),
        b"http:/metadata/instance",
        b"http:metadata",
        b"http://169.254.169.254#/metadata",
        b"http://169.254.169.254//instance",
        b"http://169.254.169.254/metadata#a",
        b"http://169.254.169.254/metadata\n",
        b"ftp://169.254.169.254/metadata",
        b"file:///metadata",
        b"xhttp://169.254.169.254/metadata",
    ],
)
def test_unreadable_absolute_form_is_refused(raw: bytes) -> None:
    refusal = read_target(raw)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "bad-target")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"/metadata/instance?a=1&b=2", b"/metadata/instance?b=2&a=1"),
        (b"/metadata/instance?a=https://x", b"/metadata/instance?a=https%3A%2F%2Fx"),
        (b"/metadata/instance?a=%3a", b"/metadata/instance?a=%3A"),
        (b"/metadata/instance/?a=1", b"/metadata/instance?a=1"),
        (b"//metadata/instance?a=1", b"/metadata/instance?a=1"),
        (b"/metadata/instance?a={b}", b"/metadata/instance?a=%7bb%7D"),
        (b"/metadata/instance?%61=1", b"/metadata/instance?a=1"),
        (b"/metadata/%69nstance?a=1", b"/metadata/instance?a=1"),
        (b"/metadata/instance?", b"/metadata/instance"),
        (b"/metadata/instance?a=1&bypass_cache=true", b"/metadata/instance?a=1"),
        (b"/metadata/instance?Bypass_Cache=TRUE&a=1", b"/metadata/instance?a=1"),
        (b"/metadata/instance?bypass%5Fcache=tru%65", b"/metadata/instance"),
        (b"http://169.254.169.254/metadata/instance?a=1", b"/metadata/instance?a=1"),
    ],
)
def test_equivalent_spellings_share_a_key(one: bytes, other: bytes) -> None:
    assert read(one).key == read(other).key
    # Or the first client's spelling would decide what all others get.
    if not read(one).bypass:
        path, _, query = read(one).raw.partition(b"?")
        other_path, _, other_query = read(other).raw.partition(b"?")
        assert (path, sorted(query.split(b"&"))) == (other_path, sorted(other_query.split(b"&")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"/metadata/instance?a=1+2", b"/metadata/instance?a=1%202"),
        (b"/metadata/instance?a=1+2", b"/metadata/instance?a=1%2B2"),
        (b"/metadata/instance?a=1%202", b"/metadata/instance?a=1%2B2"),
        (b"/metadata/instance?a", b"/metadata/instance?a="),
        (b"/metadata/instance?a=1%26b=2", b"/metadata/instance?a=1&b=2"),
        (b"/metadata/instance?a%3D1", b"/metadata/instance?a=1"),
        (b"/metadata/instance?a=1", b"/metadata/instance?A=1"),
        (b"/metadata/instance?a=x", b"/metadata/instance?a=X"),
        (b"/metadata/instance?a=%2525", b"/metadata/instance?a=%25"),
        (b"/metadata/instance?a=1", b"/metadata/Instance?a=1"),
        (b"/metadata/instance?a=b=c", b"/metadata/instance?a=b%3Dc"),
        (b"/metadata/instance?a=1;b=2", b"/metadata/instance?a=1%3Bb=2"),
        (b"/metadata/instance?a=1,2", b"/metadata/instance?a=1%2C2"),
        (b"/metadata/a+b", b"/metadata/a-b"),
        (b"/metadata/instance?bypass_cache=false", b"/metadata/instance"),
        (b"/metadata/instance?bypass_cache", b"/metadata/instance"),
        (b"/metadata/instance?bypass_cache=true1", b"/metadata/instance"),
        (b"/metadata/instance?xbypass_cache=true", b"/metadata/instance"),
        (b"/metadata/instance?bypass_cache=true&xbypass_cache=true", b"/metadata/instance"),
        (b"/metadata/instance?bypass_cache=true&bypass_caches=1", b"/metadata/instance"),
        (b"/metadata/instance?a=bypass_cache=true", b"/metadata/instance?a"),
    ],
)
def test_ambiguous_spellings_have_keys_of_their_own(one: bytes, other: bytes) -> None:
    assert read(one).key != read(other).key


@pytest.mark.parametrize(
    ("query", "bypass"),
    [
        (b"bypass_cache=true", True),
        (b"a=1&BYPASS_cache=True", True),
        (b"bypass_cache=%74rue", True),
        (b"bypass_cache=false", False),
        (b"bypass_cache=", False),
        (b"bypass_cache", False),
        (b"bypass_cache=true+", False),
        (b"a=bypass_cache=true", False),
        (b"bypass-cache=true", False),
    ],
)
def test_bypass_cache_true_sets_bypass(query: bytes, bypass: bool) -> None:
    assert read(b"/metadata/identity/oauth2/token?" + query).bypass is bypass


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (b"/metadata/%69nst%61nce", b"/metadata/instance"),
        (b"/metadata/a%2db%5Fc%7Ed", b"/metadata/a-b_c~d"),
        (b"/metadata/Instance/", b"/metadata/Instance"),
        (b"/metadata/instance?", b"/metadata/instance"),
        (b"//metadata/instance?a=1", b"/metadata/instance?a=1"),
        (b"////%6Detadata/instance/", b"/metadata/instance"),
        (b"http://169.254.169.254//metadata/instance", b"/metadata/instance"),
        (b"/m?b=%41&a=1", b"/m?b=A&a=1"),
        (b"/m?%61%2E=1", b"/m?a.=1"),
        (b"/m?a=https%3a%2f%2Fb%3Fc%40d", b"/m?a=https://b?c@d"),
        (b"/m?a=%c3%a9%20%2b%26%25", b"/m?a=%C3%A9%20%2B%26%25"),
        (b"/m?a=!$'()*+,;=", b"/m?a=!$'()*+,;="),
        (b"/m?a=%21%24%27%28%29%2a%2B%2C%3b%3D", b"/m?a=%21%24%27%28%29%2A%2B%2C%3B%3D"),
        (b'/m?a="<>[\\]^`{|}', b"/m?a=%22%3C%3E%5B%5C%5D%5E%60%7B%7C%7D"),
        (b"/m?a=%2541", b"/m?a=%2541"),
        (b"/m?&&a=1&", b"/m?&&a=1&"),
        (b"/", b"/"),
    ],
)
def test_target_is_sent_in_its_canonical_spelling(written: bytes, sent: bytes) -> None:
    assert read(written).raw == sent
    assert read(sent).raw == sent


def test_target_of_60_kb_is_accepted() -> None:
    long = b"/metadata/instance?a=" + b"%41" * 4_000 + b"a" * 48_000
    target = read(long)
    assert target.raw == b"/metadata/instance?a=" + b"A" * 4_000 + b"a" * 48_000
    assert target.parameters == (("a", "A" * 4_000 + "a" * 48_000),)
    assert target.key == read(target.raw).key


@pytest.mark.parametrize(
    ("query", "many"),
    [
        (b"&".join(b"p%d" % number for number in range(513)), "512 parameters"),
        (b"&" * 60_000, "512 parameters"),
        (b"a=" + b"%41" * 4_097, "4096 escapes"),
    ],
)
def test_query_with_too_many_parts_is_refused(query: bytes, many: str) -> None:
    refusal = read_target(b"/metadata/instance?" + query)
    assert isinstance(refusal, Refusal)
    assert many in refusal.description


def test_several_hundred_parameters_are_accepted() -> None:
    names = [b"p%d=%d" % (number, number) for number in range(512)]
    forth, back = read(b"/x?" + b"&".join(names)), read(b"/x?" + b"&".join(reversed(names)))
    assert len(forth.parameters) == 512
    assert forth.key == back.key


@pytest.mark.parametrize(
    "target",
    [
        b"/metadata/instance?api-version=2021-02-01",
        b"/metadata/instance?" + b"&".join(b"%x=" % number for number in range(250)),
        b"/metadata/instance?a=%F0%9F%98%80" + b"a" * 900,
        b'/metadata/instance?a="' + b'"' * 900,
        b"/metadata" + b"/a" * 63,
        b"/metadata//instance",
    ],
    ids=["plain", "parameters", "wide", "escaped", "segments", "refused"],
)
def test_size_of_reading_is_at_least_its_memory(target: bytes) -> None:
    count = 200
    raws = [target + b"%d" % number for number in range(count)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    kept = [(bytes(bytearray(raw)), read_target(raw)) for raw in raws]
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken <= sum(size_of_reading(raw, reading) for raw, reading in kept)


def test_empty_parameters_have_an_entry_of_their_own() -> None:
    # 60 kB are more than a server need take (http.sys: 16 kB), and its 400 would be kept for everyone.
    plain = read(b"/metadata/instance?api-version=2021-02-01")
    padded = read_target(b"/metadata/instance?api-version=2021-02-01" + b"&" * 60_000)
    assert isinstance(padded, Refusal) or padded.key != plain.key


@pytest.mark.parametrize(
    "raw", [b"/a;" + b"x" * 5_000, b"/a?" + b"\r\n" * 500, b"/x?" + b"n" * 3_000 + b"&" + b"n" * 3_000]
)
def test_refusal_is_one_short_line_for_any_target(raw: bytes) -> None:
    refusal = read_target(raw)
    assert isinstance(refusal, Refusal)
    assert len(refusal.description) < 300
    assert refusal.description.isprintable()


def test_path_of_thousands_of_segments_is_refused_early() -> None:
    assert isinstance(read_target(b"/metadata" + b"/a" * 63), Target)
    for count in (64, 30_000):
        refusal = read_target(b"/metadata" + b"/a" * count)
        assert isinstance(refusal, Refusal)
        assert "more than 64 segments" in refusal.description
